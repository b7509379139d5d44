"""The two places through which cold rows reach the device: a part of its memory, and page-locked memory beside it.

Rows are laid out on the host as the device's kernels hold them, in memory that its copy engine reads by itself, so that
one copy brings a whole band and the host does not wait for it. Who may write where and when is `cold_stream`'s to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.placement.device_bytes import FLOAT32_BYTES, device_type, matrix_bytes
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device import Device, Mark
from powerinfer_py.runtime.hybrid.device_memory import Workspace
from powerinfer_py.runtime.hybrid.neuron_order import Ids
from powerinfer_py.runtime.hybrid.part_source import NEURON_ROWS, NEURON_VALUES, chosen_columns, short_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class Band:
    """A place for one band at a time. there: uint8 on the device; here: as many bytes of a `host_buffer`.

    uploaded: behind the last copy from here to there, None: never yet. computed: behind the last use of what is there,
    None: whatever has been enqueued may use it.
    """

    there: Tensor
    here: Tensor
    uploaded: Mark | None = None
    computed: Mark | None = None
    used_bytes: int = 0

    @classmethod
    def of(cls, device: Device, there: Tensor) -> Band:
        """With host memory of its own."""
        return cls(there, device.host_buffer(there.numel()))

    def send(self, device: Device) -> None:
        """Enqueues the copy of what was written here."""
        device.copy(self.there[: self.used_bytes], self.here[: self.used_bytes])


class BandSource:
    """A `WeightSource` of some neurons of a layer: it writes them into `band.here` and hands out what they will be in
    `band.there`.

    kernels: of the device; host: of the CPU. ids: of the neurons, in the file's numbering, ascending.
    """

    def __init__(self, file: FileWeights, kernels: Kernels, host: Kernels, band: Band, ids: Ids) -> None:
        self._file = file
        self._kernels = kernels
        self._host = host
        self._band = band
        self._ids = ids
        self._names: list[str] = []
        # Both count alike, so that a tensor has one offset.
        self._here, self._there = Workspace(band.here), Workspace(band.there)

    def has(self, name: str) -> bool:
        """Whether the file has the tensor."""
        return self._file.has(name)

    def rows(self, name: str) -> int:
        """First dimension of a tensor of two."""
        return self._file.rows(name)

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """The band's rows, or its columns of a down projection that the file holds the other way."""
        ggml_type, data = self._file.stored(name, rows, cols)
        self._names.append(name)
        if short_name(name) in NEURON_ROWS:
            return self._filled(name, ggml_type, cols, data.reshape(rows, -1), self._ids)
        columns = chosen_columns(ggml_type, data, self._ids, rows, cols)
        return self._filled(name, ggml_type, self._ids.size, columns.reshape(rows, -1), None)

    def table(self, name: str, rows: int, cols: int) -> Matrix:
        """The same: a device has one order of rows."""
        return self.matrix(name, rows, cols)

    def summed(self, name: str, rows: int, cols: int) -> Matrix:
        """The same."""
        return self.matrix(name, rows, cols)

    def neurons(self, multiplied: Sequence[str], summed: str, rows: int, cols: int) -> tuple[Matrix, ...]:
        """One by one."""
        return tuple(self.matrix(name, rows, cols) for name in (*multiplied, summed))

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:  # noqa: ARG002
        """Never asked: a layer whose down projection has to be transposed is not streamed."""
        raise AssertionError(f"{name} would be transposed for every band")

    def vector(self, name: str, n: int) -> Tensor:
        """A float32 vector, or the band's elements of one that has one a neuron."""
        import torch

        values = self._file.vector(name, n)
        if short_name(name) in NEURON_VALUES:
            values = values[torch.from_numpy(self._ids)]
        here, there = self._take(FLOAT32_BYTES * values.numel())
        here.view(torch.float32).copy_(values)
        return there.view(torch.float32)

    def release(self) -> None:
        """Lets the system take back the memory of the file's pages that were read."""
        for name in self._names:
            self._file.release(name)

    def prepare_attention(self, block: AttentionBlock) -> AttentionBlock:
        """Never asked: attention is where the block is."""
        raise AssertionError(f"attention {block.output.matrix.name} has no cold part")

    def prepare_feed_forward(self, block: FeedForwardBlock) -> FeedForwardBlock:
        """The block ready for the device's kernels; the bias of the whole sum is not a band's."""
        return self._kernels.prepare_feed_forward(replace(block, weights=replace(block.weights, down_bias=None)))

    def _filled(
        self, name: str, ggml_type: GGMLType, cols: int, data: npt.NDArray[np.uint8], ids: Ids | None
    ) -> Matrix:
        rows = len(data) if ids is None else ids.size
        here, there = self._take(matrix_bytes(ggml_type, rows, cols))
        known = self._kernels.fill_rows(ggml_type, cols, data, ids, here.numpy(), self._host)
        return self._kernels.filled_matrix(name, device_type(ggml_type), rows, cols, there, known)

    def _take(self, n_bytes: int) -> tuple[Tensor, Tensor]:
        pair = self._here.take(n_bytes), self._there.take(n_bytes)
        self._band.used_bytes = self._here.peak_bytes
        return pair
