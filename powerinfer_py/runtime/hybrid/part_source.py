"""The tensors of one side of a layer: all that a block needs on the device, or the cold neurons on the CPU.

Rows of neurons come in the order of places (`NeuronOrder`), each side its own alone; nothing of a neuron is kept on a
side that does not compute it. Names and shapes asked for are the file's: what is handed out may have fewer rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType, row_bytes
from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory, Region, Source, take_tensor
from powerinfer_py.runtime.hybrid.neuron_order import Ids, NeuronOrder
from powerinfer_py.runtime.hybrid.uploads import Uploader

if TYPE_CHECKING:
    from torch import Tensor

Bytes = npt.NDArray[np.uint8]

# Tensors of a layer with a row, or an element, a neuron.
NEURON_ROWS = ("ffn_gate.weight", "ffn_up.weight", "ffn_down_t.weight")
NEURON_VALUES = ("ffn_gate.bias", "ffn_up.bias")
DOWN_BIASES = ("ffn_down.bias", "ffn_down_t.bias")
_PREDICTOR = ("fc1.weight", "fc2.weight")


def short_name(name: str) -> str:
    """The name of a tensor within its layer; of any other, itself."""
    return name.split(".", 2)[2] if name.startswith("blk.") else name


class LayerRegions:
    """Where a layer's tensors go on the device."""

    def __init__(self, dense: Region, predictor: Region, hot: Region) -> None:
        self._dense, self._predictor, self._hot = dense, predictor, hot

    def of(self, name: str) -> Region:
        """The region of a tensor of the layer."""
        short = short_name(name)
        if short in _PREDICTOR:
            return self._predictor
        is_neurons = short in NEURON_ROWS or short in NEURON_VALUES or short == "ffn_down.weight"
        return self._hot if is_neurons else self._dense


class DeviceSource:
    """A `WeightSource` that puts every tensor it is asked for on the device.

    kernels: the device's. order: of the layer's neurons, of which the hot ones are handed out; None outside of layers.
    """

    def __init__(
        self,
        file: FileWeights,
        kernels: Kernels,
        uploader: Uploader,
        memory: DeviceMemory,
        regions: LayerRegions | Source,
        order: NeuronOrder | None = None,
    ) -> None:
        self._file = file
        self._kernels = kernels
        self._uploader = uploader
        self._memory = memory
        self._regions = regions
        self._order = order

    def has(self, name: str) -> bool:
        """Whether the file has the tensor."""
        return self._file.has(name)

    def rows(self, name: str) -> int:
        """First dimension of a tensor of two."""
        return self._file.rows(name)

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """The matrix, or its hot rows or columns; fc2 with its rows in the order of places."""
        ggml_type, data = self._file.stored(name, rows, cols)
        ids = None
        if self._order is not None:
            short = short_name(name)
            if short in NEURON_ROWS:
                ids = self._order.hot
            elif short == "fc2.weight":
                ids = self._order.placed
            elif short == "ffn_down.weight":
                data = chosen_columns(ggml_type, data, self._order.hot, rows, cols)
                cols = self._order.hot.size
        matrix = self._placed(name, ggml_type, rows, cols, data, ids)
        self._file.release(name)
        return matrix

    def table(self, name: str, rows: int, cols: int) -> Matrix:
        """The same: a device has one order of rows."""
        return self.matrix(name, rows, cols)

    def summed(self, name: str, rows: int, cols: int) -> Matrix:
        """The same."""
        return self.matrix(name, rows, cols)

    def neurons(self, multiplied: Sequence[str], summed: str, rows: int, cols: int) -> tuple[Matrix, ...]:
        """One by one."""
        return tuple(self.matrix(name, rows, cols) for name in (*multiplied, summed))

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:
        """Hot rows of the transpose."""
        ggml_type, data = self._file.turned(name, rows, cols)
        return self._placed(name, ggml_type, rows, cols, data, None if self._order is None else self._order.hot)

    def vector(self, name: str, n: int) -> Tensor:
        """A float32 vector, or its hot elements."""
        import torch

        values = self._file.vector(name, n)
        if self._order is not None and short_name(name) in NEURON_VALUES:
            values = values[torch.from_numpy(self._order.hot)]
        placed = take_tensor(self._region(name), tuple(values.shape), torch.float32)
        return placed.copy_(values)

    def prepare_attention(self, block: AttentionBlock) -> AttentionBlock:
        """The block ready for the device's kernels."""
        with self._memory.into(self._region("attn")):
            return self._kernels.prepare_attention(block)

    def prepare_feed_forward(self, block: FeedForwardBlock) -> FeedForwardBlock:
        """The block ready for the device's kernels; the predictor is run apart from it."""
        with self._memory.into(self._region("attn")):
            return self._kernels.prepare_feed_forward(replace(block, predictor=None))

    def _placed(self, name: str, ggml_type: GGMLType, rows: int, cols: int, data: Bytes, ids: Ids | None) -> Matrix:
        wanted = None if ids is None or is_whole(ids, rows) else ids
        return self._uploader.matrix(name, ggml_type, rows, cols, data, wanted, self._region(name))

    def _region(self, name: str) -> Source:
        return self._regions.of(name) if isinstance(self._regions, LayerRegions) else self._regions


class ColdSource:
    """A `WeightSource` of a layer's cold neurons for the CPU: copies of their rows, packed where the file's are.

    Where all neurons are cold, nothing is chosen, and they get what the file hands out: a copy or a view of the map, as
    its options say.
    """

    def __init__(self, file: FileWeights, kernels: Kernels, order: NeuronOrder) -> None:
        self._file = file
        self._kernels = kernels
        self._order = order

    def has(self, name: str) -> bool:
        """Whether the file has the tensor, and the cold side wants it: the bias of the sum is the device's to add."""
        return short_name(name) not in DOWN_BIASES and self._file.has(name)

    def rows(self, name: str) -> int:
        """First dimension of a tensor of two."""
        return self._file.rows(name)

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """Cold rows, or cold columns of a down projection that is not a neuron a row."""
        if self._has_all:
            return self._file.matrix(name, rows, cols)
        ggml_type, data = self._file.stored(name, rows, cols)
        if short_name(name) == "ffn_down.weight":
            cold = chosen_columns(ggml_type, data, self._order.cold, rows, cols)
            return self._made(name, ggml_type, rows, self._order.cold.size, cold, pack=self._file.packs)
        cold = chosen_rows(data, self._order.cold, rows)
        return self._made(name, ggml_type, self._order.cold.size, cols, cold, pack=self._file.packs)

    def table(self, name: str, rows: int, cols: int) -> Matrix:
        """The same in the file's own order of bytes."""
        return self.summed(name, rows, cols)

    def summed(self, name: str, rows: int, cols: int) -> Matrix:
        """Cold rows in the file's own order of bytes, to be added up."""
        if self._has_all:
            return self._file.summed(name, rows, cols)
        ggml_type, data = self._file.stored(name, rows, cols)
        cold = chosen_rows(data, self._order.cold, rows)
        return self._made(name, ggml_type, self._order.cold.size, cols, cold, pack=False)

    def neurons(self, multiplied: Sequence[str], summed: str, rows: int, cols: int) -> tuple[Matrix, ...]:
        """Cold rows, those of a neuron beside each other where the file's would be."""
        if self._has_all:
            return self._file.neurons(multiplied, summed, rows, cols)
        stored = [self._file.stored_matrix(name, rows, cols) for name in (*multiplied, summed)]
        # Asked before rows are gathered, for what comes of them in vain.
        if self._file.packs and self._kernels.interleaves([whole.type for whole in stored[:-1]]):
            cold = [
                replace(whole, rows=self._order.cold.size, data=chosen_rows(whole.data, self._order.cold, rows))
                for whole in stored
            ]
            made = self._kernels.interleaved(cold[:-1], cold[-1])
            if made is not None:
                for matrix in made:
                    self._file.release(matrix.name)
                return tuple(replace(matrix, data=np.empty(0, np.uint8)) for matrix in made)
        return (*(self.matrix(name, rows, cols) for name in multiplied), self.summed(summed, rows, cols))

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:
        """Cold rows of the transpose."""
        ggml_type, data = self._file.turned(name, rows, cols)
        cold = chosen_rows(data, self._order.cold, rows)
        return self._kernels.matrix(name, ggml_type, self._order.cold.size, cols, cold)

    def vector(self, name: str, n: int) -> Tensor:
        """A float32 vector, or its cold elements."""
        import torch

        values = self._file.vector(name, n)
        return values[torch.from_numpy(self._order.cold)] if short_name(name) in NEURON_VALUES else values

    def prepare_attention(self, block: AttentionBlock) -> AttentionBlock:
        """Never asked: attention is where the block is."""
        raise AssertionError(f"attention {block.output.matrix.name} has no cold part")

    def prepare_feed_forward(self, block: FeedForwardBlock) -> FeedForwardBlock:
        """The block ready for the CPU's kernels."""
        return self._kernels.prepare_feed_forward(block)

    @property
    def _has_all(self) -> bool:
        return self._order.hot.size == 0

    def _made(self, name: str, ggml_type: GGMLType, rows: int, cols: int, cold: Bytes, *, pack: bool) -> Matrix:
        matrix = self._kernels.matrix(name, ggml_type, rows, cols, cold, pack=pack)
        if matrix.packed:
            # The packed rows are a copy of the copy.
            matrix = replace(matrix, data=np.empty(0, np.uint8))
        self._file.release(name)
        self._file.keep(matrix.data)
        return matrix


def is_whole(ids: Ids, rows: int) -> bool:
    """Whether `ids` are all of `rows` rows, in order."""
    return ids.size == rows and bool((ids[1:] > ids[:-1]).all())


def chosen_rows(data: Bytes, ids: Ids, rows: int) -> Bytes:
    """Rows `ids` of a matrix of `rows` rows, as bytes; the same array where that is all of them in order."""
    return data if is_whole(ids, rows) else data.reshape(rows, -1)[ids].reshape(-1)


def chosen_columns(ggml_type: GGMLType, data: Bytes, ids: Ids, rows: int, cols: int) -> Bytes:
    """Columns `ids` of a matrix (rows, cols), as bytes. Raises ValueError where they part a block of the type."""
    if ids.size == cols:
        return data
    layout = BLOCK_LAYOUTS[ggml_type]
    blocks = ids.reshape(-1, layout.n_weights) if ids.size % layout.n_weights == 0 else None
    first = None if blocks is None else blocks[:, 0]
    if blocks is None or first is None or (blocks != first[:, None] + np.arange(layout.n_weights)).any():
        raise ValueError(f"columns of {ggml_type.name} come in blocks of {layout.n_weights}, which the split parts")
    if (first % layout.n_weights).any():
        raise ValueError(f"columns of {ggml_type.name} come in blocks of {layout.n_weights}, which the split parts")
    per_row = row_bytes(ggml_type, cols) // layout.n_bytes
    return data.reshape(rows, per_row, layout.n_bytes)[:, first // layout.n_weights].reshape(-1)
