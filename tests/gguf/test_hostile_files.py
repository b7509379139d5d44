"""Paths that are no file to be read. What may be wrong inside a file is told by the cases in tests/hostile."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest

from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf import open_gguf


def test_no_file_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"GGUF")
    for path, match in (
        ("", "no file name"),
        (tmp_path, "a directory"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "secret" / "below", "cannot open"),
        ("a\0b", "no possible file name"),
        ("/dev/zero", "not a regular file"),
    ):
        with pytest.raises(FileFormatError, match=match) as caught:
            open_gguf(path)
        assert str(caught.value).isprintable()


def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="not a regular file"):
        open_gguf(tmp_path / "pipe")


def test_a_file_that_cannot_be_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on file systems without maps, or where the address space is used up."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(FileFormatError, match="cannot map: No such device"):
        open_gguf(tmp_path / "model.gguf")
