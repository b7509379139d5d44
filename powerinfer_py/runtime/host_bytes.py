"""What weights take in host memory once they are prepared, told from names, types and shapes: nothing is read or made.

The graph is walked as it is for loading, so that what is counted is what would be allocated, to the byte: packed rows
(those of Q4_K and Q5_K are longer than the file's), plain copies, transposes, float32 vectors. What stays a view of the
file's map counts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from powerinfer_py.config import ModelConfig, RuntimeOptions, Sparsity
from powerinfer_py.gguf import GGUFFile, TensorInfo
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType, row_bytes
from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.weights import Assembly
from powerinfer_py.placement.placement import Placement
from powerinfer_py.runtime.host_weights import turned_type
from powerinfer_py.runtime.hybrid.part_source import DOWN_BIASES, NEURON_VALUES, short_name

if TYPE_CHECKING:
    from torch import Tensor

_FLOAT32_BYTES = 4


def host_bytes(
    file: GGUFFile,
    kernels: Kernels,
    options: RuntimeOptions,
    architecture: Architecture,
    config: ModelConfig,
    sparsity: Sparsity,
    layers: range,
    placement: Placement | None = None,
) -> int:
    """Bytes of all that `layers` keep on the host if every copy is made that is good for speed, file pages apart.

    placement: None for an engine without a device.
    """
    count = _Count(file, kernels, options)
    assembly = Assembly(architecture, config, count, sparsity)
    if placement is None:
        assembly.model(layers)
        return count.n_bytes
    assembly.embedding()
    total = 0
    for index in layers:
        placed = placement.layers[index]
        if not placed.block_on_gpu:
            assembly.layer(index)
        elif (n_cold := config.n_ff - placed.hot.size) > 0:
            cold = _ColdCount(file, kernels, options, n_cold, config.n_ff)
            Assembly(architecture, config, cold, sparsity).feed_forward(index)
            total += cold.n_bytes
    if layers.stop == config.n_layer and not placement.head_on_gpu:
        assembly.head()
    return total + count.n_bytes


class _Count:
    """A `WeightSource` that adds up what its tensors take and makes none of them. A tensor that is missing or has
    another shape takes nothing: loading refuses it, in its own words.
    """

    def __init__(self, file: GGUFFile, kernels: Kernels, options: RuntimeOptions) -> None:
        self.n_bytes = 0
        self._file = file
        self._kernels = kernels
        self._options = options
        self._tables: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether the file has the tensor."""
        return name in self._file.tensors

    def rows(self, name: str) -> int:
        """First dimension of a tensor of two."""
        info = self._file.tensors.get(name)
        return info.shape[0] if info is not None and len(info.shape) == 2 else 0

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """Counts the packed rows, or the copy."""
        return self._counted(name, rows, cols, pack=True)

    def summed(self, name: str, rows: int, cols: int) -> Matrix:
        """Counts the copy."""
        return self._counted(name, rows, cols, pack=False)

    def neurons(self, multiplied: Sequence[str], summed: str, rows: int, cols: int) -> tuple[Matrix, ...]:
        """Counts the copies, which take the same beside each other and apart."""
        return (*(self.matrix(name, rows, cols) for name in multiplied), self.summed(summed, rows, cols))

    def table(self, name: str, rows: int, cols: int) -> Matrix:
        """Counts what is read out of the map because the options want none; of a name once."""
        info = self._found(name, rows, cols)
        if info is not None and not self._options.use_mmap and name not in self._tables:
            self.n_bytes += info.n_bytes
        self._tables.add(name)
        return _nothing(name, rows, cols)

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:
        """Counts the transpose."""
        if (info := self._found(name, cols, rows)) is not None:
            self.n_bytes += rows * row_bytes(turned_type(info.ggml_type), cols)
        return _nothing(name, rows, cols)

    def vector(self, name: str, n: int) -> Tensor:
        """Counts the float32 vector."""
        import torch

        self.n_bytes += _FLOAT32_BYTES * n if self.has(name) else 0
        return torch.empty(0)

    def prepare_attention(self, block: AttentionBlock) -> AttentionBlock:
        """Nothing runs it."""
        return block

    def prepare_feed_forward(self, block: FeedForwardBlock) -> FeedForwardBlock:
        """Nothing runs it."""
        return block

    def _counted(self, name: str, rows: int, cols: int, *, pack: bool) -> Matrix:
        info = self._found(name, rows, cols)
        n_bytes = 0 if info is None else self._kernels.copied_bytes(info.ggml_type, rows, cols, pack=pack, copy=True)
        self.n_bytes += n_bytes
        return _nothing(name, rows, cols) if n_bytes else self.table(name, rows, cols)

    def _found(self, name: str, rows: int, cols: int) -> TensorInfo | None:
        info = self._file.tensors.get(name)
        return info if info is not None and tuple(info.shape) == (rows, cols) else None


class _ColdCount(_Count):
    """The same of `n_cold` of a layer's `n_ff` neurons. Fewer than all are copied out of the file in any case
    (`ColdSource`).
    """

    def __init__(self, file: GGUFFile, kernels: Kernels, options: RuntimeOptions, n_cold: int, n_ff: int) -> None:
        super().__init__(file, kernels, options)
        self._n_cold = n_cold
        self._has_all = n_cold == n_ff

    def has(self, name: str) -> bool:
        """As `ColdSource.has`."""
        return short_name(name) not in DOWN_BIASES and super().has(name)

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:
        """Counts the cold rows of the transpose."""
        if (info := self._found(name, cols, rows)) is not None:
            self.n_bytes += self._n_cold * row_bytes(turned_type(info.ggml_type), cols)
        return _nothing(name, rows, cols)

    def vector(self, name: str, n: int) -> Tensor:
        """Counts the vector, or its cold elements."""
        return super().vector(name, self._n_cold if short_name(name) in NEURON_VALUES else n)

    def _counted(self, name: str, rows: int, cols: int, *, pack: bool) -> Matrix:
        if self._has_all:
            return super()._counted(name, rows, cols, pack=pack)
        if (info := self._found(name, rows, cols)) is not None:
            by_columns = short_name(name) == "ffn_down.weight"
            n_rows, n_cols = (rows, self._n_cold) if by_columns else (self._n_cold, cols)
            if n_cols % BLOCK_LAYOUTS[info.ggml_type].n_weights:
                # The split parts a block: `ColdSource` refuses it.
                return _nothing(name, rows, cols)
            copied = self._kernels.copied_bytes(info.ggml_type, n_rows, n_cols, pack=pack, copy=True)
            self.n_bytes += copied or n_rows * row_bytes(info.ggml_type, n_cols)
        return _nothing(name, rows, cols)


def _nothing(name: str, rows: int, cols: int) -> Matrix:
    return Matrix(name, GGMLType.F32, rows, cols, np.empty(0, np.uint8))
