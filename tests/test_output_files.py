"""Small files: whole under their name or as they were before, whatever other writers in the folder do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powerinfer_py.errors import OptionError, PowerInferError
from powerinfer_py.gguf.leftovers import remove_leftovers
from powerinfer_py.output_files import (
    locked_folder,
    make_folder,
    remove,
    require_writable,
    require_writable_folder,
    write_bytes,
)

# Says so when all of its bytes are in the temporary file, and waits to be told to go on.
WRITER = """
import os, sys
from pathlib import Path
from powerinfer_py.output_files import write_bytes
sync, calls = os.fsync, []
def wait(descriptor):
    if not calls:
        calls.append(descriptor)
        print("written", flush=True)
        sys.stdin.readline()
    sync(descriptor)
os.fsync = wait
write_bytes(Path(sys.argv[1]), b"whole")
"""


def test_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"one", b"", b"three"):
        write_bytes(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"before")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PowerInferError, match="file: cannot write: No space left on device"):
        write_bytes(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("is_killed", [False, True])
def test_temporary_file_of_another_process(is_killed: bool, tmp_path: Path) -> None:
    """While its writer lives it is left alone; that of a killed one goes with the next write."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        remove_leftovers(tmp_path)
        write_bytes(tmp_path / "other", b"")
        assert len(list(tmp_path.iterdir())) == 2
        if is_killed:
            process.kill()
        else:
            process.communicate("go on\n")
    write_bytes(tmp_path / "other", b"")
    assert {path.name for path in tmp_path.iterdir()} == ({"other"} if is_killed else {"file", "other"})
    assert is_killed or (process.returncode, (tmp_path / "file").read_bytes()) == (0, b"whole")


def test_what_cannot_be_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below, nul = tmp_path / "file" / "x", tmp_path / "a\0b"
    for path in (below, nul, tmp_path, Path("/dev/null")):
        with pytest.raises(PowerInferError, match="cannot write"):
            write_bytes(path, b"")
    for path in (below, nul):
        with pytest.raises(PowerInferError, match="cannot make this folder"):
            make_folder(path)
    with pytest.raises(PowerInferError, match="cannot remove"):
        remove(tmp_path)
    remove(tmp_path / "absent")
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"before")
    require_writable(tmp_path / "file")
    require_writable(tmp_path / "new")
    require_writable_folder(tmp_path)
    require_writable_folder(tmp_path / "a" / "b")
    for path in (tmp_path / "a" / "b", tmp_path / "file" / "x", tmp_path / "a\0b", tmp_path, Path("/dev/null")):
        with pytest.raises(PowerInferError, match="cannot write"):
            require_writable(path)
    for path in (tmp_path / "file", tmp_path / "file" / "x", tmp_path / "a\0b"):
        with pytest.raises(PowerInferError, match="cannot write into this folder"):
            require_writable_folder(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"before"


def test_a_folder_is_for_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    with locked_folder(folder, "profiling into"):
        assert folder.is_dir()
        with (
            pytest.raises(OptionError, match=r"here: another process is profiling into this folder"),
            locked_folder(folder, "profiling into"),
        ):
            pass
    with locked_folder(folder, "profiling into"):
        pass
