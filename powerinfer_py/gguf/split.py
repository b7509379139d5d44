"""Models cut into several files, `NAME-00001-of-0000N.gguf`: finding the files and checking that they belong together.

The keys `split.*` say whether a file is a part; its name only says where the others are. Invariant: the list handed out
is complete, in order, of one magic, and no tensor is in two of its files.
"""

from __future__ import annotations

import re

from powerinfer_py.errors import FileFormatError, printable
from powerinfer_py.gguf import keys
from powerinfer_py.gguf.shard import Shard, read_shard
from powerinfer_py.gguf.types import INTEGER_VALUE_TYPES

_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def is_split(shard: Shard) -> bool:
    """Whether the file is one of several. A merged model keeps `split.count`, as 0 or 1."""
    return keys.SPLIT_COUNT in shard.entries and _value(shard, keys.SPLIT_COUNT) > 1


def read_split(shard: Shard) -> list[Shard]:
    """All files of the model that `shard`, any part of it, belongs to. Raises FileFormatError, as `read_shard` does."""
    n_shards = _value(shard, keys.SPLIT_COUNT)
    match = _PART_NAME.fullmatch(shard.path.name)
    if match is None or int(match["count"]) != n_shards:
        raise FileFormatError(
            f"is one of {n_shards} files of a split model, expected a name like NAME-00001-of-{n_shards:05}.gguf",
            path=shard.path,
        )
    given = int(match["number"]) - 1
    shards: list[Shard] = []
    for index in range(n_shards):
        path = shard.path.with_name(f"{match['stem']}-{index + 1:05}-of-{n_shards:05}.gguf")
        # The named file is read again only where its place among the others is not the first.
        part = shard if index == given == 0 else read_shard(path, index)
        _check_part(part, index, n_shards, shard.magic)
        shards.append(part)
    _check_tensors(shards)
    return shards


def _check_part(part: Shard, index: int, n_shards: int, magic: str) -> None:
    if not is_split(part) or _value(part, keys.SPLIT_COUNT) != n_shards:
        raise FileFormatError(f"{keys.SPLIT_COUNT} differs from the other files of the model", path=part.path)
    number = _value(part, keys.SPLIT_NO)
    if number != index:
        raise FileFormatError(f"{keys.SPLIT_NO} is {number}, expected {index} from its name", path=part.path)
    if part.magic != magic:
        raise FileFormatError(f"magic {part.magic}, the other files of the model have {magic}", path=part.path)


def _check_tensors(shards: list[Shard]) -> None:
    seen: set[str] = set()
    for shard in shards:
        for name in shard.tensors:
            if name in seen:
                raise FileFormatError(f"tensor {printable(name)} is also in another file", path=shard.path)
            seen.add(name)
    expected = _value(shards[0], keys.SPLIT_TENSORS_COUNT)
    if expected != len(seen):
        raise FileFormatError(
            f"{keys.SPLIT_TENSORS_COUNT} is {expected}, the files hold {len(seen)} tensors", path=shards[0].path
        )


def _value(shard: Shard, key: str) -> int:
    entry = shard.entries.get(key)
    if entry is None:
        raise FileFormatError(f"key {key} is missing, expected an integer", path=shard.path)
    if entry.type not in INTEGER_VALUE_TYPES or not isinstance(entry.value, int):
        raise FileFormatError(
            f"key {key} is {entry.type_name}, expected an integer", path=shard.path, offset=entry.offset
        )
    return entry.value
