"""Temporary files: those of killed writers go at the next start, those of living ones stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from powerinfer_py.gguf import GGMLType, GGUFWriter
from powerinfer_py.gguf.leftovers import create_locked, remove_leftovers

WRITER = (
    "import sys, time; from powerinfer_py.gguf import GGUFWriter\n"
    "writer = GGUFWriter(sys.argv[1]); print('begun', flush=True); time.sleep(60)"
)


def temporaries(folder: Path) -> list[Path]:
    return sorted(folder.glob(".powerinfer-*.tmp"))


def test_a_killed_writer_is_tidied_up_after(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "killed.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        (held,) = temporaries(tmp_path)
        with GGUFWriter(tmp_path / "other.gguf"):
            assert held in temporaries(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert temporaries(tmp_path) == [held]
    with GGUFWriter(tmp_path / "other.gguf") as writer:
        assert held not in temporaries(tmp_path)
        assert len(temporaries(tmp_path)) == 1
        writer.add_tensor("x", GGMLType.F32, (1,))
        writer.write_tensor("x", bytes(4))
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


def test_other_files_are_let_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    (tmp_path / ".powerinfer-link.tmp").symlink_to(precious)
    (tmp_path / ".powerinfer-folder.tmp").mkdir()
    os.mkfifo(tmp_path / ".powerinfer-pipe.tmp.other")
    before = sorted(tmp_path.iterdir())
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    remove_leftovers(tmp_path / "absent")


def test_locked_files_of_this_process_stay(tmp_path: Path) -> None:
    path, descriptor = create_locked(tmp_path)
    remove_leftovers(tmp_path)
    assert path.exists()
    os.close(descriptor)
    remove_leftovers(tmp_path)
    assert not path.exists()


# An interrupt as early as one can come: the file is there, and whoever asked for it has not heard of it.
INTERRUPTED = """
import fcntl, os, sys
from pathlib import Path
from powerinfer_py.output_files import require_writable, write_bytes
from powerinfer_py.gguf import GGUFWriter
def interrupted(descriptor, operation):
    raise KeyboardInterrupt
folder, work = Path(sys.argv[1]), sys.argv[2]
fcntl.flock = interrupted
write = {"write": lambda path: write_bytes(path, b"some"), "try": require_writable, "model": GGUFWriter}[work]
write(folder / "file")
"""


@pytest.mark.parametrize("work", ["write", "try", "model"])
def test_an_interrupt_right_after_creation_leaves_nothing(tmp_path: Path, work: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), work]
    assert b"KeyboardInterrupt" in subprocess.run(command, capture_output=True, check=False).stderr
    assert not list(tmp_path.iterdir())


FORKING = """
import os, sys
from pathlib import Path
from powerinfer_py.gguf.leftovers import create_locked
path, _ = create_locked(Path(sys.argv[1]))
child = os.fork()
if child:
    os.waitpid(child, 0)
    print(path.exists())
"""


def test_a_forked_process_leaves_alone_what_its_parent_writes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FORKING, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout == "True\n"
    assert not list(tmp_path.iterdir())
