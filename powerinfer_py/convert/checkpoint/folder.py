"""A folder with a checkpoint: `config.json` and tensors in one file or in shards with an index.

Invariant: every tensor that an index names was found in the shard it names, and no name occurs twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from powerinfer_py.convert.checkpoint.safetensors_file import read_safetensors
from powerinfer_py.convert.checkpoint.stored_tensor import StoredTensor
from powerinfer_py.convert.checkpoint.torch_file import read_torch_file
from powerinfer_py.convert.json_file import JsonObject, load_object
from powerinfer_py.errors import FileFormatError, printable
from powerinfer_py.gguf.file_watch import FileWatch

_Reader = Callable[[Path], dict[str, StoredTensor]]
# In the order in which transformers looks for them.
_KINDS: tuple[tuple[str, str, _Reader], ...] = (
    ("model.safetensors", "model*.safetensors", read_safetensors),
    ("pytorch_model.bin", "pytorch_model*.bin", read_torch_file),
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """config: the content of `config.json`."""

    folder: Path
    config: JsonObject

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name, in the order of files and of tensors in them; found when first asked for.

        Raises FileFormatError naming the file at fault. Time and memory are proportional to headers, not to weights.
        """
        return MappingProxyType(_read_tensors(self.folder))

    @property
    def watches(self) -> tuple[FileWatch, ...]:
        """Of the files with tensors, which must not change until all is read."""
        files = {id(tensor.file): tensor.file for tensor in self.tensors.values()}
        return tuple(file.watch for file in files.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads `config.json`. Raises FileFormatError naming the file at fault."""
    try:
        is_folder = folder.is_dir()
    except ValueError:
        is_folder = False
    if not is_folder:
        raise FileFormatError("no folder with a checkpoint", path=folder)
    return Checkpoint(folder, load_object(folder / "config.json"))


def _read_tensors(folder: Path) -> dict[str, StoredTensor]:
    for single, pattern, read in _KINDS:
        index = folder / f"{single}.index.json"
        if index.exists():
            return _read_shards(index, read)
        if (folder / single).exists():
            return read(folder / single)
        shards = sorted(folder.glob(pattern))
        if shards:
            return _join((shard, read(shard)) for shard in shards)
    raise FileFormatError(
        "holds no weights: expected model.safetensors or pytorch_model.bin, or their shards and index", path=folder
    )


def _read_shards(index: Path, read: _Reader) -> dict[str, StoredTensor]:
    weight_map = load_object(index).object("weight_map")
    if weight_map is None:
        raise FileFormatError("weight_map is missing", path=index)
    names = weight_map.values.values()
    if not all(isinstance(name, str) for name in names):
        raise FileFormatError("weight_map must give the name of a file for every tensor", path=index)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for name in dict.fromkeys(names):
        # A shard lies beside its index: a path would lead out of the folder.
        if Path(name).name != name or name in ("", ".", ".."):
            raise FileFormatError(
                f"weight_map names {printable(repr(name), 60)}, expected a file of the folder", path=index
            )
        if not (index.parent / name).exists():
            raise FileFormatError(
                f"the index names this shard, and it is missing ({index.name})", path=index.parent / name
            )
        shards[name] = read(index.parent / name)
    for tensor, name in weight_map.values.items():
        if tensor not in shards[name]:
            raise FileFormatError(
                f"tensor {printable(tensor)} is missing, {index.name} places it here", path=index.parent / name
            )
    return _join((index.parent / name, tensors) for name, tensors in shards.items())


def _join(shards: Iterable[tuple[Path, dict[str, StoredTensor]]]) -> dict[str, StoredTensor]:
    joined: dict[str, StoredTensor] = {}
    for path, tensors in shards:
        for name, tensor in tensors.items():
            if name in joined:
                raise FileFormatError(
                    f"tensor {printable(name)} also stands in {joined[name].file.path.name}", path=path
                )
            joined[name] = tensor
    return joined
