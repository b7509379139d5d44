"""Models cut into several files: read as one, and refused where the files do not belong together."""

from __future__ import annotations

import struct
from pathlib import Path

import helpers_gguf_bytes as b
import pytest

from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf import fingerprint, open_gguf


def part(
    number: int,
    n_parts: int = 3,
    n_tensors: int = 4,
    names: tuple[str, ...] | None = None,
    magic: bytes = b"GGUF",
    keys: tuple[str, ...] = ("split.no", "split.count", "split.tensors.count"),
) -> bytes:
    """File `number` (from 0) of a model: metadata in the first, tensors of 32 bytes filled with the number."""
    names = names if names is not None else ((), ("a", "b"), ("c", "d"))[number]
    values = {"split.no": (b.U16, "<H", number), "split.count": (b.U16, "<H", n_parts)}
    values["split.tensors.count"] = (b.I32, "<i", n_tensors)
    entries = [b.entry(key, values[key][0], struct.pack(*values[key][1:])) for key in keys]
    if number == 0:
        entries.append(b.string_entry("general.architecture", "llama"))
    infos = [b.info(name, (8,), 0, 32 * i) for i, name in enumerate(names)]
    return b.gguf_bytes(entries, infos, bytes([number]) * 32 * len(names), magic=magic)


def write(folder: Path, parts: list[bytes], n_parts: int = 3) -> list[Path]:
    paths = [folder / f"my model-{i + 1:05}-of-{n_parts:05}.gguf" for i in range(len(parts))]
    for path, data in zip(paths, parts, strict=True):
        path.write_bytes(data)
    return paths


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_any_part_opens_the_whole_model(opened: int, tmp_path: Path) -> None:
    paths = write(tmp_path, [part(i) for i in range(3)])
    file = open_gguf(paths[opened])
    assert file.paths == tuple(paths)
    assert file.path == paths[0]
    assert file.architecture == "llama"
    assert list(file.tensors) == ["a", "b", "c", "d"]
    assert [info.file_index for info in file.tensors.values()] == [1, 1, 2, 2]
    assert file.tensor_data("b").tobytes() == bytes([1]) * 32
    assert file.tensor_data("d").tobytes() == bytes([2]) * 32
    assert fingerprint(file) == fingerprint(open_gguf(paths[0]))


@pytest.mark.parametrize("count", [0, 1])
def test_a_merged_model_is_one_file(count: int, tmp_path: Path) -> None:
    path = tmp_path / "merged.gguf"
    path.write_bytes(part(0, n_parts=count, names=("a",), n_tensors=1))
    assert list(open_gguf(path).tensors) == ["a"]


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        pytest.param([part(0), part(1)], "00003-of-00003.gguf: cannot open", id="missing file"),
        pytest.param([part(0), part(1), part(1)], "split.no is 1, expected 2", id="wrong number"),
        pytest.param([part(0), part(1, 2), part(2)], "split.count differs", id="wrong count"),
        pytest.param([part(0), part(1), part(2, keys=())], "split.count differs", id="not a part"),
        pytest.param([part(0), part(1), part(2, names=("c", "a"))], "tensor a is also in another", id="tensor twice"),
        pytest.param([part(0), part(1), part(2, names=("c",))], "tensors.count is 4, the files hold 3", id="too few"),
        pytest.param([part(0), part(1), part(2, magic=b"PWRI")], "magic PWRI", id="two magics"),
        pytest.param([part(0), part(1), part(2)[:-1]], "truncated: tensor d", id="truncated part"),
        pytest.param(
            [part(0, keys=("split.no", "split.count")), part(1), part(2)], "tensors.count is missing", id="no total"
        ),
        pytest.param([part(0, keys=("split.count",)), part(1), part(2)], "split.no is missing", id="no number"),
        pytest.param([part(0, 4), part(1), part(2)], "expected a name like NAME-00001-of-00004", id="other name"),
    ],
)
def test_refused(parts: list[bytes], match: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=match):
        open_gguf(write(tmp_path, parts)[0])


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(part(0))
    with pytest.raises(FileFormatError, match="one of 3 files of a split model"):
        open_gguf(path)


def test_split_count_of_a_wrong_type(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b.gguf_bytes([b.string_entry("split.count", "2")]))
    with pytest.raises(FileFormatError, match=r"key split\.count is STRING, expected an integer"):
        open_gguf(path)
