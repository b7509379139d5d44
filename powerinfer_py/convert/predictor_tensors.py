"""A folder of predictors, `model_{i}.pt` for layer i, as tensors of the file that will hold them.

The folder comes from a stranger: nothing in it is executed, and no layer is believed before it was read and held
against the model. Invariant: one layer's predictor is in memory at a time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from powerinfer_py.convert.bands import encode
from powerinfer_py.convert.output import OutputTensor
from powerinfer_py.convert.regular_file import open_regular
from powerinfer_py.errors import FileFormatError, ModelError, printable
from powerinfer_py.gguf import GGMLType, keys
from powerinfer_py.gguf.quantisation import Quantizer
from powerinfer_py.tensor_files import load_state

if TYPE_CHECKING:
    from torch import Tensor

_LAYER_FILE = re.compile(r"model_(\d+)\.pt")
_NAMES = ("fc1.weight", "fc2.weight")
_MAX_CONFIG_BYTES = 1 << 20
_MAX_THRESHOLD = 3e38


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

    paths: tuple[Path, ...]
    ranks: tuple[int, ...]
    n_embd: int
    n_ff: int
    sparse_threshold: float | None

    def tensors(self, type_for: Callable[[int], GGMLType], quantise: Quantizer) -> list[OutputTensor]:
        """`fc1` (rank, n_embd) and `fc2` (n_ff, rank) of every layer. type_for: from the length of a row."""
        planned = []
        for layer, (path, rank) in enumerate(zip(self.paths, self.ranks, strict=True)):
            for name, shape in zip(_NAMES, ((rank, self.n_embd), (self.n_ff, rank)), strict=True):
                ggml_type = type_for(shape[1])
                chunks = partial(_chunks, path, name, shape, ggml_type, quantise)
                planned.append(OutputTensor(keys.block_tensor(layer, name), ggml_type, shape, chunks))
        return planned


def read_predictors(folder: Path, n_layer: int, n_embd: int, n_ff: int) -> Predictors:
    """Reads and checks every layer: `fc1.weight` (rank, n_embd), `fc2.weight` (n_ff, rank), finite floats.

    Raises ModelError naming layer and shape where the folder belongs to another model, FileFormatError for a file that
    is missing or malformed.
    """
    paths = _layer_paths(folder, n_layer)
    ranks = tuple(_checked_rank(path, layer, n_embd, n_ff) for layer, path in enumerate(paths))
    return Predictors(paths, ranks, n_embd, n_ff, _sparse_threshold(folder / "config.json"))


def _layer_paths(folder: Path, n_layer: int) -> tuple[Path, ...]:
    try:
        found = {int(match[1]) for path in folder.iterdir() if (match := _LAYER_FILE.fullmatch(path.name))}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no possible folder name"
        raise FileFormatError(f"cannot read the predictor folder: {reason}", path=folder) from None
    wrong = sorted(found ^ set(range(n_layer)))
    if wrong:
        fault = "no predictor for layer" if wrong[0] < n_layer else "a predictor for layer"
        raise ModelError(f"{printable(str(folder))}: {fault} {wrong[0]}, the model has {n_layer} layers")
    return tuple(folder / f"model_{layer}.pt" for layer in range(n_layer))


def _checked_rank(path: Path, layer: int, n_embd: int, n_ff: int) -> int:
    fc1, fc2 = _load(path)
    rank = fc1.shape[0]
    for name, tensor, shape in (("fc1", fc1, (rank, n_embd)), ("fc2", fc2, (n_ff, rank))):
        if tuple(tensor.shape) != shape or rank < 1:
            raise ModelError(
                f"{printable(str(path))}: {name} of layer {layer} has shape {tuple(tensor.shape)}, the model's layer "
                f"needs {shape}"
            )
        if not bool(tensor.isfinite().all()):
            raise FileFormatError(f"{name} holds NaN or infinite values", path=path)
    return rank


def _load(path: Path) -> tuple[Tensor, Tensor]:
    state = load_state(path)
    for name in _NAMES:
        tensor = state.get(name)
        if tensor is None:
            raise FileFormatError(f"tensor {name} is missing", path=path)
        if tensor.ndim != 2 or not tensor.is_floating_point():
            raise FileFormatError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected a matrix of floats", path=path
            )
    return state[_NAMES[0]], state[_NAMES[1]]


def _chunks(
    path: Path, name: str, shape: tuple[int, int], ggml_type: GGMLType, quantise: Quantizer
) -> Iterator[npt.NDArray[np.uint8]]:
    tensor = _load(path)[_NAMES.index(name)]
    if tuple(tensor.shape) != shape:
        raise FileFormatError(f"{name} was changed while it was being read", path=path)
    yield encode(name, tensor.float().numpy(), ggml_type, quantise)


def _sparse_threshold(path: Path) -> float | None:
    """The folder's `config.json` may state it; there need not be such a file."""
    if not path.exists():
        return None
    try:
        with open_regular(path) as file:
            settings = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        raise FileFormatError("cannot be read as JSON", path=path) from None
    value = settings.get("sparse_threshold") if isinstance(settings, dict) else None
    if value is None:
        return None
    # A float32 in the file; the comparison also refuses NaN, and integers that are no float at all.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MAX_THRESHOLD:
        raise FileFormatError(f"sparse_threshold is {printable(repr(value))}, expected a finite number", path=path)
    return float(value)
