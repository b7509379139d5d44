"""The tensors of a file as CPU weights: views of the memory map, or copies where the options ask for them.

Names and shapes are checked as the graph asks for them; what the graph did not ask for is refused at the end, since a
tensor that is silently ignored (an expert, an adapter) means another model than the one that would run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.config import RuntimeOptions
from powerinfer_py.errors import ModelError, UnsupportedError
from powerinfer_py.gguf import GGUFFile, TensorInfo
from powerinfer_py.gguf.quants import dequantize
from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType
from powerinfer_py.kernels.blocks import AttentionBlock, FeedForwardBlock
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix, StoredMatrix
from powerinfer_py.runtime.host_memory import fits_in_memory, lock_in_memory

if TYPE_CHECKING:
    from torch import Tensor

# Old converters stored the inverse frequencies of every layer; they follow from the hyperparameters.
_IGNORED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight|rope_freqs\.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")
# Types whose weights can be moved one by one, as plain words.
_WORDS: dict[GGMLType, npt.DTypeLike] = {GGMLType.F32: "<u4", GGMLType.F16: "<u2", GGMLType.BF16: "<u2"}


class FileWeights:
    """A `WeightSource` over one open file, for the kernels that will compute with the matrices.

    n_bytes: what the weights that come to the CPU take with all their copies (`host_bytes`). cache_bytes: of a KV cache
    beside them, most of which is not in use yet. Where both do not fit what is available, weights are not copied.
    """

    def __init__(
        self,
        file: GGUFFile,
        kernels: Kernels,
        options: RuntimeOptions,
        n_bytes: int = 0,
        cache_bytes: int = 0,
    ) -> None:
        # Of its own, so that rows can still be read when whoever opened the file has closed it.
        self._file = GGUFFile(file.shards)
        self._kernels = kernels
        self._options = options
        self._asked: set[str] = set()
        self._tables: dict[str, Matrix] = {}
        self.unpacked_reason = _unpacked_reason(options, n_bytes, cache_bytes)
        self.packs = options.repack and self.unpacked_reason is None
        self.transposed_bytes = 0

    def has(self, name: str) -> bool:
        """Whether the file has the tensor."""
        return name in self._file.tensors

    def rows(self, name: str) -> int:
        """First dimension of a tensor of two. Raises ModelError where it is missing or has another rank."""
        info = self._info(name)
        if len(info.shape) != 2:
            raise ModelError(f"{name} has shape {info.shape}, expected two dimensions")
        return info.shape[0]

    def matrix(self, name: str, rows: int, cols: int) -> Matrix:
        """The matrix in its file type, packed or copied where that is wanted; its pages of the file are then let go."""
        info = self._checked(name, (rows, cols))
        data = self._file.tensor_data(name)
        matrix = self._kernels.matrix(name, info.ggml_type, rows, cols, data, pack=self.packs, copy=self.packs)
        if not matrix.copied:
            return self.table(name, rows, cols)
        self._file.release(name)
        return matrix

    def summed(self, name: str, rows: int, cols: int) -> Matrix:
        """The matrix as it lies in the file, copied where that is wanted; its pages of the file are then let go.

        Rows that lie apart in a file's pages of 4 KB cost a translation of addresses each, in huge pages hardly any.
        """
        if not self.packs:
            return self.table(name, rows, cols)
        info = self._checked(name, (rows, cols))
        matrix = self._kernels.matrix(name, info.ggml_type, rows, cols, self._file.tensor_data(name), copy=True)
        if not matrix.copied:
            return self.table(name, rows, cols)
        self._file.release(name)
        return matrix

    def neurons(self, multiplied: Sequence[str], summed: str, rows: int, cols: int) -> tuple[Matrix, ...]:
        """Matrices with a neuron a row: a neuron's rows beside each other where copies are made and the kernels can."""
        if self.packs:
            stored = [self.stored_matrix(name, rows, cols) for name in (*multiplied, summed)]
            made = self._kernels.interleaved(stored[:-1], stored[-1])
            if made is not None:
                for matrix in made:
                    self._file.release(matrix.name)
                return made
        return (*(self.matrix(name, rows, cols) for name in multiplied), self.summed(summed, rows, cols))

    def table(self, name: str, rows: int, cols: int) -> Matrix:
        """The matrix as it lies in the file; the same object for the same name."""
        if name not in self._tables:
            info = self._checked(name, (rows, cols))
            self._tables[name] = self._kernels.matrix(name, info.ggml_type, rows, cols, self._data(name))
        return self._tables[name]

    def transposed(self, name: str, rows: int, cols: int) -> Matrix:
        """The transpose, see `turned`."""
        ggml_type, data = self.turned(name, rows, cols)
        self.transposed_bytes += data.nbytes
        return self._kernels.matrix(name, ggml_type, rows, cols, data)

    def stored(self, name: str, rows: int, cols: int) -> tuple[GGMLType, npt.NDArray[np.uint8]]:
        """Type and bytes of a matrix (rows, cols), as they lie in the file; `release` lets their pages go."""
        return self._checked(name, (rows, cols)).ggml_type, self._file.tensor_data(name)

    def stored_matrix(self, name: str, rows: int, cols: int) -> StoredMatrix:
        """The same, as kernels take it."""
        ggml_type, data = self.stored(name, rows, cols)
        return StoredMatrix(name, ggml_type, rows, cols, data)

    def turned(self, name: str, rows: int, cols: int) -> tuple[GGMLType, npt.NDArray[np.uint8]]:
        """Type and bytes of the transpose (rows, cols) of a matrix that the file holds as (cols, rows).

        Its values are the file's where `turned_type` keeps the type, else rounded.
        """
        info = self._checked(name, (cols, rows))
        values: npt.NDArray[Any]
        if info.ggml_type in _WORDS:
            values = self._file.tensor_data(name).view(_WORDS[info.ggml_type]).reshape(cols, rows)
        else:
            values = dequantize(self._file.tensor_data(name), info.ggml_type, cols, rows).astype("<f2")
        return turned_type(info.ggml_type), np.ascontiguousarray(values.T).view(np.uint8).reshape(-1)

    def keep(self, data: npt.NDArray[np.uint8]) -> None:
        """Locks a copy of weights in memory where the options ask for that. Raises DeviceError where it cannot be."""
        if self._options.use_mlock:
            lock_in_memory(data)

    def release(self, name: str) -> None:
        """Lets the system take back the memory of a tensor's pages, which has been copied; locked ones stay."""
        if not self._options.use_mlock:
            self._file.release(name)

    def leave_out(self, name: str) -> None:
        """Notes that a tensor is known and not needed."""
        self._asked.add(name)

    def vector(self, name: str, n: int) -> Tensor:
        """A float32 vector (n)."""
        import torch

        info = self._checked(name, (n,))
        return torch.from_numpy(dequantize(self._file.tensor_data(name), info.ggml_type, 1, n).reshape(n).copy())

    def prepare_attention(self, block: AttentionBlock) -> AttentionBlock:
        """The block ready for these kernels."""
        return self._kernels.prepare_attention(block)

    def prepare_feed_forward(self, block: FeedForwardBlock) -> FeedForwardBlock:
        """The block ready for these kernels."""
        return self._kernels.prepare_feed_forward(block)

    def refuse_unused(self, layers: range, n_layer: int) -> None:
        """Raises UnsupportedError for a tensor that the graph lacks; the model's other layers are not judged."""
        for name in self._file.tensors:
            layer = _LAYER.match(name)
            elsewhere = layer is not None and int(layer[1]) < n_layer and int(layer[1]) not in layers
            if name not in self._asked and not elsewhere and not _IGNORED.fullmatch(name):
                raise UnsupportedError(f"the file has a tensor {name} that this architecture's graph does not use")

    def _info(self, name: str) -> TensorInfo:
        self._asked.add(name)
        try:
            return self._file.tensors[name]
        except KeyError:
            raise ModelError(f"tensor {name} is missing") from None

    def _checked(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        info = self._info(name)
        if tuple(info.shape) != shape:
            raise ModelError(f"{name} has shape {tuple(info.shape)}, expected {shape}")
        if info.ggml_type not in WEIGHT_TYPES:
            raise UnsupportedError(f"{name} has type {info.ggml_type.name}, which is no weight type")
        return info

    def _data(self, name: str) -> npt.NDArray[np.uint8]:
        data = self._file.tensor_data(name)
        if not self._options.use_mmap:
            data = data.copy()
        if self._options.use_mlock:
            lock_in_memory(data)
        return data


def turned_type(ggml_type: GGMLType) -> GGMLType:
    """The type of a matrix's transpose: its own in F32, F16 and BF16, else F16, whose 11 bits exceed the other types' 4
    to 8.
    """
    return ggml_type if ggml_type in _WORDS else GGMLType.F16


def _unpacked_reason(options: RuntimeOptions, n_bytes: int, cache_bytes: int) -> str | None:
    """Why weights stay in the file's pages and order although nobody asked for that; None where they do not."""
    if not options.repack:
        return None
    if options.use_mlock:
        return "memory locking pins the file's own pages"
    if not fits_in_memory(n_bytes + cache_bytes):
        beside = f" beside {cache_bytes / 2**30:.1f} GiB of KV cache" if cache_bytes else ""
        return f"a copy of {n_bytes / 2**30:.1f} GiB{beside} does not fit the available memory"
    return None
