"""An output that cannot be written is refused before the work, by every command and flag that names one.

What the work needs is missing or wrong in each call, so that a command which began with it would complain of that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.conftest import Workshop
from faults.test_disk import one_line
from faults.zygote import Run
from helpers_models import FIXTURES

MISSING = "missing.gguf"


@dataclass(frozen=True)
class Output:
    """argv: from a folder of inputs and the output, whose last component is `name`. is_folder: made where missing."""

    command: str
    argv: Callable[[Path, str], list[str]]
    name: str = "output"
    is_folder: bool = False


def _convert(_inputs: Path, output: str) -> list[str]:
    return [str(FIXTURES / "bamboo"), "missing-predictors", "--outfile", output]


def _profile(inputs: Path, output: str) -> list[str]:
    # A text that no chunk can be cut from, which is found out with the model loaded.
    short = inputs / "short.txt"
    short.write_text("a", encoding="utf-8")
    return ["-m", str(inputs / "model.gguf"), "-f", str(short), "-o", output]


OUTPUTS = {
    "convert": Output("convert", _convert),
    "quantize": Output("quantize", lambda _, output: [MISSING, output, "Q4_0"]),
    "metadata": Output("metadata", lambda _, output: ["new", MISSING, output]),
    "gpuidx -o": Output("gpuidx", lambda _, output: ["-m", MISSING, "--neurons", "0.4", "-o", output]),
    "gpuidx --plot": Output("gpuidx", lambda _, o: ["-m", MISSING, "--neurons", "0.4", "--plot", o], "output.svg"),
    "profile -o": Output("profile", _profile, is_folder=True),
    "profile --plot": Output("profile", lambda _, output: ["-m", MISSING, "--plot", output], "output.png"),
    "train-predictors": Output(
        "train_predictors", lambda _, output: ["-m", MISSING, "-f", "missing.txt", "-o", output], is_folder=True
    ),
    "train-predictors --merge": Output(
        "train_predictors", lambda _, output: ["--merge", "missing", "-o", output], is_folder=True
    ),
    "run --plot": Output("run", lambda _, output: ["-m", MISSING, "-p", "a", "--plot", output], "output.pdf"),
}


def refusal(workshop: Workshop, case: str, output: Path, *, unprivileged: bool = False) -> str:
    """The one line in which a call is refused, naming the output."""
    tool = OUTPUTS[case]
    workshop.errors.unlink(missing_ok=True)
    argv = tool.argv(workshop.inputs, str(output))
    run = Run(tool.command, argv, str(workshop.errors), unprivileged=unprivileged)
    assert workshop.zygote.call(run) == 1
    line = one_line(workshop, tool.command.replace("_", "-"))
    assert str(output) in line
    return line


@pytest.mark.parametrize("case", [case for case, tool in OUTPUTS.items() if not tool.is_folder])
def test_a_folder_that_is_missing(case: str, workshop: Workshop, tmp_path: Path) -> None:
    output = tmp_path / "missing" / OUTPUTS[case].name
    assert "cannot write: No such file or directory" in refusal(workshop, case, output)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_read_only_folder(case: str, workshop: Workshop, tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    line = refusal(workshop, case, shut / OUTPUTS[case].name, unprivileged=True)
    assert "cannot" in line
    assert "Permission denied" in line
    assert not [*shut.iterdir()]


@pytest.mark.parametrize("case", OUTPUTS)
def test_a_folder_where_a_file_belongs_and_the_reverse(case: str, workshop: Workshop, tmp_path: Path) -> None:
    output = tmp_path / OUTPUTS[case].name
    if OUTPUTS[case].is_folder:
        output.write_bytes(b"before")
    else:
        output.mkdir()
    line = refusal(workshop, case, output)
    reasons = ("Not a directory", "File exists") if OUTPUTS[case].is_folder else ("Is a directory",)
    assert line.endswith(reasons)
    assert [*tmp_path.iterdir()] == [output]


@pytest.mark.parametrize("case", ["train-predictors", "profile -o"])
def test_folders_are_not_made_for_nothing(case: str, workshop: Workshop, tmp_path: Path) -> None:
    """Finding out that a folder could be filled leaves no file where the work cannot be done."""
    tool, output = OUTPUTS[case], tmp_path / "new" / "output"
    workshop.errors.unlink(missing_ok=True)
    assert workshop.zygote.call(Run(tool.command, tool.argv(workshop.inputs, str(output)), str(workshop.errors))) == 1
    assert str(output) not in one_line(workshop, tool.command.replace("_", "-"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
