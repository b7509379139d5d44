"""Standard streams that are closed, full or left by their reader, in real processes and on streams of this one."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powerinfer_py.cli.command import run_command
from powerinfer_py.cli.streams import remark, standard_streams
from powerinfer_py.errors import PowerInferError

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
MODEL = REPOSITORY / "tests" / "fixtures" / "relu-llama.q4.powerinfer.gguf"
RUN = f"run -m {MODEL} -n 4 --temp 0 -t 1"
FULL = "standard output cannot be written: No space left on device"
CLOSED = "standard output is closed; > /dev/null discards what is written there"

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Runs `powerinfer_py.cli.COMMAND` by a shell, redirections included."""
    line = f'"$0" -m powerinfer_py.cli.{command}'
    return subprocess.run(
        ["/bin/sh", "-c", line, sys.executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
        check=False,
    )


COMMANDS = {
    "powerinfer-run": f"{RUN} -p hi",
    "powerinfer-inspect": f"inspect {MODEL} --json",
    "powerinfer": "main",
}
OUTPUTS = [
    *COMMANDS.items(),
    ("powerinfer-run", f"{RUN} -p hi --json"),
    ("powerinfer-run", "run --help"),
    ("powerinfer-inspect", f"inspect {MODEL}"),
    ("powerinfer-inspect", f"inspect {MODEL} --json --tensors"),
    ("powerinfer", "main --version"),
]


@needs_full_device
@pytest.mark.parametrize(("prog", "command"), OUTPUTS, ids=[command.partition("-m")[0] for _, command in OUTPUTS])
def test_output_that_cannot_be_written_is_one_line(prog: str, command: str) -> None:
    done = shell(f"{command} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"{prog}: error: {FULL}"
    assert done.stderr.count("rror") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("prog", "command"), COMMANDS.items())
def test_a_closed_output_is_refused(prog: str, command: str) -> None:
    done = shell(f"{command} >&-")
    assert (done.returncode, done.stderr) == (1, f"{prog}: error: {CLOSED}\n")


@pytest.mark.parametrize("closed", ["<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_several_closed_streams_end_the_command_alike(closed: str) -> None:
    done = shell(f"main {closed}")
    assert done.returncode == 1
    assert done.stderr == ("" if "2>" in closed else f"powerinfer: error: {CLOSED}\n")


@pytest.mark.parametrize("command", [f"{RUN} -i -p hi <&-", f"{RUN} -f - <&-"])
def test_a_closed_input_is_empty(command: str) -> None:
    done = shell(command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shell(command.replace("<&-", "</dev/null")).stdout != ""


@pytest.mark.parametrize("redirection", ["2>&-", pytest.param("2>/dev/full", marks=needs_full_device)])
def test_remarks_that_cannot_be_written_are_lost_and_the_text_is_not(redirection: str) -> None:
    done = shell(f"{RUN} -p hi {redirection}")
    assert done.returncode == 0
    assert done.stdout == shell(f"{RUN} -p hi").stdout != ""


def test_an_input_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    done = shell(f"{RUN} -i -p hi 0>{tmp_path / 'written'}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "powerinfer-run: error: standard input: cannot be read: Bad file descriptor"


class Broken(io.StringIO):
    """Takes text and cannot pass it on."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


def test_only_errors_of_standard_output_are_taken_for_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect() -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_command("prog", defect)
    monkeypatch.setattr(sys, "stdout", Broken(OSError(5, "Input/output error")))
    with (
        pytest.raises(PowerInferError, match="standard output cannot be written: Input/output error"),
        standard_streams(),
    ):
        print("text")


def test_the_stream_is_the_callers_again_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    assert run_command("prog", lambda: print("é") or 0) == 0  # type: ignore[func-returns-value]
    assert sys.stdout is before
    assert capsys.readouterr().out == "é\n"


def test_a_reader_that_has_gone_is_code_141(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError()))
    assert run_command("prog", lambda: 0) == 141
    assert capsys.readouterr().err == ""


def test_a_remark_is_a_line_or_lost(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    remark("here")
    assert capsys.readouterr().err == "here\n"
    monkeypatch.setattr(sys, "stderr", Broken(OSError(28, "No space left on device")))
    remark("gone")
