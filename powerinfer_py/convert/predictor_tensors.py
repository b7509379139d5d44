"""A folder of predictors as tensors of the file that will hold them.

The folder comes from a stranger: nothing in it is executed, and no layer is believed before it was read and held
against the model. Invariant: one layer's predictor is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from powerinfer_py.convert.bands import encode
from powerinfer_py.convert.output import OutputTensor
from powerinfer_py.convert.predictor_files import NAMES, LayerFile, find_layers, stated_threshold
from powerinfer_py.errors import FileFormatError, ModelError, printable
from powerinfer_py.gguf import GGMLType, keys
from powerinfer_py.gguf.quantisation import Quantizer


class PredictorSource(Protocol):
    """Predictors of every layer as a plan needs them, whatever they are made of."""

    @property
    def sparse_threshold(self) -> float | None:
        """The file's one threshold; None for none to be written."""

    def tensors(self, type_for: Callable[[int], GGMLType], quantise: Quantizer) -> list[OutputTensor]:
        """`fc1` (rank, n_embd) and `fc2` (n_ff, rank) of every layer. type_for: from the length of a row."""


@dataclass(frozen=True)
class Predictors:
    """A checked folder. ranks: of each layer's predictor. sparse_threshold: None where the folder states none."""

    files: tuple[LayerFile, ...]
    ranks: tuple[int, ...]
    n_embd: int
    n_ff: int
    sparse_threshold: float | None

    def tensors(self, type_for: Callable[[int], GGMLType], quantise: Quantizer) -> list[OutputTensor]:
        """`fc1` (rank, n_embd) and `fc2` (n_ff, rank) of every layer. type_for: from the length of a row."""
        planned = []
        for layer, (file, rank) in enumerate(zip(self.files, self.ranks, strict=True)):
            for name, shape in zip(NAMES, ((rank, self.n_embd), (self.n_ff, rank)), strict=True):
                ggml_type = type_for(shape[1])
                chunks = partial(_chunks, file, name, shape, ggml_type, quantise)
                planned.append(OutputTensor(keys.block_tensor(layer, name), ggml_type, shape, chunks))
        return planned


def read_predictors(folder: Path, n_layer: int, n_embd: int, n_ff: int) -> Predictors:
    """Reads and checks every layer: `fc1.weight` (rank, n_embd), `fc2.weight` (n_ff, rank), finite floats.

    Raises ModelError naming layer and shape where the folder belongs to another model, FileFormatError for a file that
    is missing or malformed, UnsupportedError for elements that are no floats of a safetensors file.
    """
    found = find_layers(folder)
    wrong = sorted(found.keys() ^ set(range(n_layer)))
    if wrong:
        fault = "no predictor for layer" if wrong[0] < n_layer else "a predictor for layer"
        raise ModelError(f"{printable(str(folder))}: {fault} {wrong[0]}, the model has {n_layer} layers")
    files = tuple(found[layer] for layer in range(n_layer))
    ranks = tuple(_checked_rank(file, layer, n_embd, n_ff) for layer, file in enumerate(files))
    return Predictors(files, ranks, n_embd, n_ff, stated_threshold(folder))


def _checked_rank(file: LayerFile, layer: int, n_embd: int, n_ff: int) -> int:
    fc1, fc2 = file.load()
    rank = fc1.shape[0]
    for name, tensor, shape in (("fc1", fc1, (rank, n_embd)), ("fc2", fc2, (n_ff, rank))):
        if tuple(tensor.shape) != shape or rank < 1:
            raise ModelError(
                f"{printable(str(file.path))}: {name} of layer {layer} has shape {tuple(tensor.shape)}, the model's "
                f"layer needs {shape}"
            )
        if not bool(tensor.isfinite().all()):
            raise FileFormatError(f"{name} of layer {layer} holds NaN or infinite values", path=file.path)
    return rank


def _chunks(
    file: LayerFile, name: str, shape: tuple[int, int], ggml_type: GGMLType, quantise: Quantizer
) -> Iterator[npt.NDArray[np.uint8]]:
    tensor = file.load()[NAMES.index(name)]
    if tuple(tensor.shape) != shape:
        raise FileFormatError(f"{name} was changed while it was being read", path=file.path)
    yield encode(name, tensor.float().numpy(), ggml_type, quantise)
