"""Texts: what is refused, and that what is read is what was checked."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import threading
from pathlib import Path

import pytest

from powerinfer_py.errors import FileFormatError, OptionError
from powerinfer_py.profiler import documents as module
from powerinfer_py.profiler.documents import CALIBRATION_TEXT, open_documents


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_digest_size_and_text(tmp_path: Path) -> None:
    data = "\ufeffcafé\r\n\u2028".encode()
    (document,) = open_documents([write(tmp_path / "a", data)])
    assert (document.sha256, document.n_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert document.read() == "café\r\n\u2028"


@pytest.mark.parametrize("block", [1, 2, 3, 5, 1 << 20])
def test_the_place_of_bad_bytes(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", block)
    for data, offset in ((b"abc\xc3\xa9\xff.", 5), (b"\xe2\x82", 0), (b"ab\xc3", 2), (b"\xe2\x82x", 0)):
        with pytest.raises(FileFormatError, match="not UTF-8") as caught:
            open_documents([write(tmp_path / "a", data)])
        assert caught.value.offset == offset
    (document,) = open_documents([write(tmp_path / "a", "é€😀".encode())])
    assert document.read() == "é€😀"


@pytest.mark.parametrize("data", [b"", b" \n\t\r\n", b"\xef\xbb\xbf"])
def test_empty_texts(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="empty"):
        open_documents([write(tmp_path / "a", data)])


def test_a_text_given_twice(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="same text"):
        open_documents([write(tmp_path / "a", b"x"), write(tmp_path / "b", b"y"), write(tmp_path / "c", b"x")])


def test_absent_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileFormatError, match="cannot be read"):
            open_documents([str(path)])


def test_a_file_that_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    (document,) = open_documents([write(path, b"one")])
    path.write_bytes(b"two")
    with pytest.raises(FileFormatError, match="changed"):
        document.read()


def test_standard_input_and_pipes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é".encode())))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"from a pipe",))
    writer.start()
    documents = open_documents(["-", str(pipe)])
    writer.join()
    assert [document.read() for document in documents] == ["é", "from a pipe"]
    assert documents[0].read() == "é"


def test_a_stream_without_end_is_refused_and_a_long_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_STREAM_BYTES", 1 << 20)
    with pytest.raises(FileFormatError, match=r"/dev/zero: is no file and gives more than 1 MiB"):
        open_documents(["/dev/zero"])
    (document,) = open_documents([write(tmp_path / "a", b"a" * (2 << 20))])
    assert document.n_bytes == 2 << 20


def test_the_text_that_comes_with_the_package_is_the_one_its_readme_names() -> None:
    (document,) = open_documents([str(CALIBRATION_TEXT)])
    readme = (CALIBRATION_TEXT.parent / "README.md").read_text(encoding="utf-8")
    assert document.sha256 in readme
    assert f"{document.n_bytes} bytes" in readme
    text = document.read()
    assert [line for line in text.split("\n") if line.startswith("Chapter")] == [f"Chapter {n}" for n in range(1, 7)]
    assert text.isascii()
