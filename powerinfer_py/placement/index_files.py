"""Where the index of a model is kept: beside it under PowerInfer's name, beside that, or in the user's cache folder.

It solves nothing. Invariant: a file that is not ours is never written to. Files appear whole, under names that two
processes may write at once: the later one wins, and both have written the same kind of file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from powerinfer_py import env
from powerinfer_py.errors import PowerInferError, printable
from powerinfer_py.gguf import keys
from powerinfer_py.output_files import make_folder
from powerinfer_py.placement.gpuidx import GpuIndex, GpuIndexError, load_gpu_index, write_gpu_index

POWERINFER_SUFFIX = ".generated.gpuidx"
OWN_SUFFIX = ".powerinfer-py.gpuidx"
# Metadata of a gpuidx file ends long before this.
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class IndexPaths:
    """beside: PowerInfer's name. own: ours where that one is taken. cache: in the user's folder."""

    beside: Path
    own: Path
    cache: Path

    @classmethod
    def of(cls, model: Path, fingerprint: str) -> IndexPaths:
        """The paths of a model file; the fingerprint keeps models of one name apart in the user's folder."""
        cache = env.cache_folder() / "gpuidx" / f"{fingerprint[:16]}-{model.name}.gpuidx"
        return cls(model.with_name(model.name + POWERINFER_SUFFIX), model.with_name(model.name + OWN_SUFFIX), cache)

    @property
    def beside_is_foreign(self) -> bool:
        """Whether there is a file under PowerInfer's name that this package did not write."""
        try:
            with self.beside.open("rb") as file:
                return keys.GPU_INDEX_PREFIX.encode() not in file.read(_HEAD_BYTES)
        except OSError:
            return False

    def foreign_notices(self, ours: Path) -> list[str]:
        """What the user should know where the file under PowerInfer's name is not ours, which is `ours`."""
        if not self.beside_is_foreign:
            return []
        return [f"{_name(self.beside)} is PowerInfer's own and was left alone; ours is {_name(ours)}"]

    def readable(self) -> Iterator[Path]:
        """Files that may hold an index of ours, the likeliest first."""
        for path in (self.beside, self.own, self.cache):
            if path.is_file() and not (path == self.beside and self.beside_is_foreign):
                yield path

    def save(self, index: GpuIndex) -> tuple[Path | None, list[str]]:
        """Writes the index where it belongs: (the path, or None where none can be written; what the user should know).

        An index that cannot be kept is no failure: it is in use already.
        """
        notices = self.foreign_notices(self.own)
        first = self.own if notices else self.beside
        try:
            write_gpu_index(first, index)
            return first, notices
        except PowerInferError as error:
            reason = str(error)
        try:
            make_folder(self.cache.parent)
            write_gpu_index(self.cache, index)
        except PowerInferError as error:
            return None, [f"the GPU index could not be kept and will be solved again: {reason}; {error}"]
        return self.cache, [f"the GPU index is kept as {_name(self.cache)}: {reason}"]


def load_own(path: Path, n_layer: int, n_ff: int) -> GpuIndex | str:
    """The index in a file of ours, or why it cannot be used."""
    try:
        return load_gpu_index(path, n_layer, n_ff)
    except GpuIndexError as error:
        return str(error)


def _name(path: Path) -> str:
    return printable(str(path), 400)
