"""How a command ends: one line and a code for every error raised on purpose, a traceback for a defect."""

from __future__ import annotations

import pytest

from powerinfer_py.cli.command import run_command, version_line
from powerinfer_py.errors import ModelError, OptionError


def raising(error: BaseException) -> int:
    def function() -> int:
        raise error

    return run_command("prog", function)


def test_the_functions_code_is_returned() -> None:
    assert run_command("prog", lambda: 7) == 7


@pytest.mark.parametrize("error", [ModelError("no such layer"), OptionError("two\nlines")])
def test_errors_on_purpose_are_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(error) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"prog: error: {str(error).replace(chr(10), ' ')}\n"


def test_interrupt_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def test_defects_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())


def test_version_line_names_command_and_package() -> None:
    assert version_line("prog").startswith("prog (powerinfer-py) ")
