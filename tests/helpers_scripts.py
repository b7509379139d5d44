"""The scripts of the workbench folders as modules, imported as Python finds them when a person runs one."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def script(path: str) -> ModuleType:
    """The script at `path` below the repository, with its folder in reach while it is imported."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"workbench_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.parent))
    return module


def last_line(module: ModuleType, arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a successful run says in its last line, one JSON object."""
    assert module.main([str(argument) for argument in arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def one_line_error(module: ModuleType, arguments: Sequence[object], capsys: pytest.CaptureFixture[str]) -> str:
    """What a failing run says: one line on stderr, nothing on stdout."""
    assert module.main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err
