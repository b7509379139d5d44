"""Where the rows that decide which neurons fire are read from: a model file, or a conversion that is only planned.

Nothing is computed here. Invariant: `read` gives a tensor of the shape asked for as float32, whatever type it is stored
in, or says that there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from powerinfer_py.config import Activation, ModelConfig
from powerinfer_py.convert.output import OutputTensor
from powerinfer_py.errors import ModelError, UnsupportedError
from powerinfer_py.gguf import WEIGHT_TYPES, GGMLType, GGUFFile, MetadataEntry, dequantize, keys
from powerinfer_py.models.registry import architecture_named

Floats = npt.NDArray[np.float32]
_PREDICTOR_SUFFIXES = (".fc1.weight", ".fc2.weight")


@dataclass(frozen=True, eq=False)
class RowSource:
    """What must be known of a model. n_bytes: of its tensors, predictors apart.

    read: float32 of a shape by name, None where there is no such tensor; ModelError for another shape,
    UnsupportedError for a type that is no weight.
    """

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    activation: Activation
    fatrelu_threshold: float
    n_bytes: int
    read: Callable[[str, tuple[int, ...]], Floats | None]

    def require(self, name: str, shape: tuple[int, ...]) -> Floats:
        """As `read`; ModelError where there is no such tensor."""
        values = self.read(name, shape)
        if values is None:
            raise ModelError(f"tensor {name} is missing")
        return values


def source_of_file(file: GGUFFile, config: ModelConfig) -> RowSource:
    """The open file of a model whose hyperparameters were read."""

    def read(name: str, shape: tuple[int, ...]) -> Floats | None:
        info = file.tensors.get(name)
        if info is None:
            return None
        _require_shape(name, info.shape, shape)
        if info.ggml_type not in WEIGHT_TYPES:
            raise UnsupportedError(f"{name} has type {info.ggml_type.name}, which is no weight type")
        n_rows = shape[0] if len(shape) == 2 else 1
        values = dequantize(file.tensor_data(name), info.ggml_type, n_rows, shape[-1]).reshape(shape)
        file.release(name)
        return values

    return RowSource(
        architecture=config.architecture,
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        n_ff=config.n_ff,
        activation=config.activation,
        fatrelu_threshold=config.fatrelu_threshold,
        n_bytes=bytes_without_predictors(file),
        read=read,
    )


def bytes_without_predictors(file: GGUFFile) -> int:
    """Bytes of a file's tensors, predictors apart."""
    return sum(info.n_bytes for name, info in file.tensors.items() if not name.endswith(_PREDICTOR_SUFFIXES))


def source_of_plan(metadata: Sequence[MetadataEntry], tensors: Sequence[OutputTensor], n_bytes: int) -> RowSource:
    """A PowerInfer file that is planned, its matrices in F32, as `convert` plans it. n_bytes: see the class."""
    values = {entry.key: entry.value for entry in metadata}
    by_name = {tensor.name: tensor for tensor in tensors}
    name = str(values[keys.ARCHITECTURE])

    def number(suffix: str) -> int:
        value = values[keys.architecture_key(name, suffix)]
        assert isinstance(value, int)  # planned by this package
        return value

    def read(tensor_name: str, shape: tuple[int, ...]) -> Floats | None:
        tensor = by_name.get(tensor_name)
        if tensor is None:
            return None
        _require_shape(tensor_name, tensor.shape, shape)
        if tensor.ggml_type is not GGMLType.F32:
            raise ValueError(f"{tensor_name} is planned as {tensor.ggml_type.name}, expected F32")
        parts = [np.frombuffer(cast(Any, chunk), "<f4") for chunk in tensor.chunks()]
        return np.concatenate(parts).reshape(shape)

    threshold = values.get(keys.FATRELU_THRESHOLD, 0.0)
    assert isinstance(threshold, (int, float))
    return RowSource(
        architecture=name,
        n_layer=number(keys.BLOCK_COUNT),
        n_embd=number(keys.EMBEDDING_LENGTH),
        n_ff=number(keys.FEED_FORWARD_LENGTH),
        activation=Activation(str(values.get(keys.ACTIVATION, architecture_named(name).powerinfer_activation))),
        fatrelu_threshold=float(threshold),
        n_bytes=n_bytes,
        read=read,
    )


def _require_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(found) != expected:
        raise ModelError(f"{name} has shape {tuple(found)}, expected {expected}")
