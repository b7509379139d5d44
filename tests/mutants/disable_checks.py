"""Disables every check of the readers and of the budget, one at a time, and demands that a test fails each time.

`python tests/mutants/disable_checks.py [PART...]`, parts as in PARTS, none for all. A check is a `raise`, or a fault
noted in a list. A disabled one does nothing; one that turns another exception into a documented one lets it through.
Nothing on disk is changed: each mutant lives in a child, where an import hook compiles the changed source. Exit code 1
where a mutant survives, which is then named.
"""

from __future__ import annotations

import ast
import os
import re
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
# A mutant that hangs fails a test's time limit; here processor time counts, for the machine may be busy.
PATIENCE_S = 120
LIMIT_BYTES = 2 << 30
SURVIVES, KILLED, BROKEN = 0, 1, 3


@dataclass(frozen=True)
class Part:
    """modules: below powerinfer_py, and which of their checks count (a pattern in the source; empty for all).

    cases: modules below tests/hostile whose files are read first, since one of them nearly always tells. tests: what
    pytest runs where they do not.
    """

    modules: dict[str, str]
    cases: tuple[str, ...]
    tests: tuple[str, ...]


_READER_TESTS = ("test_hostile_files", "test_reader", "test_split", "test_reader_properties")
PARTS = {
    "reader": Part(
        dict.fromkeys(("gguf.cursor", "gguf.shard", "gguf.metadata", "gguf.tensors", "gguf.split", "gguf.reader"), ""),
        ("gguf_cases",),
        tuple(f"tests/gguf/{name}.py" for name in _READER_TESTS),
    ),
    "gpuidx": Part({"placement.gpuidx": ""}, ("gpuidx_cases",), ("tests/placement/test_gpuidx.py",)),
    "budget": Part(
        {"placement.budget": "", "cli.values": "GiB|finite", "config": "budget"},
        (),
        ("tests/placement/test_budget.py", "tests/cli/test_values.py", "tests/test_config.py"),
    ),
}


@dataclass(frozen=True)
class Mutant:
    """One disabled check: the module, the line it stands in, and the module's code without it."""

    module: str
    line: int
    text: str
    code: CodeType


def mutants(module: str, pattern: str) -> Iterator[Mutant]:
    """A mutant for each check in the module whose source matches the pattern."""
    path = ROOT / "powerinfer_py" / f"{module.replace('.', '/')}.py"
    source = path.read_text(encoding="utf-8")
    n_checks = sum(1 for _ in checks(ast.parse(source)))
    for number in range(n_checks):
        tree = ast.parse(source)
        node, disable = [*checks(tree)][number]
        text = ast.get_source_segment(source, node) or ""
        if not re.search(pattern, text):
            continue
        disable()
        code = compile(ast.fix_missing_locations(tree), str(path), "exec")
        yield Mutant(f"powerinfer_py.{module}", node.lineno, " ".join(text.split())[:90], code)


def checks(tree: ast.AST) -> Iterator[tuple[ast.stmt, Callable[[], None]]]:
    """Every check in a tree, and what disables it."""
    for parent in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(parent, name, None)
            if not isinstance(block, list):
                continue
            for index, node in enumerate(block):
                if isinstance(node, ast.Raise) and node.exc is not None:
                    # In a handler a bare raise lets through what was caught.
                    instead: ast.stmt = ast.Raise() if isinstance(parent, ast.ExceptHandler) else ast.Pass()
                    yield node, _replacement(block, index, instead)
                elif isinstance(node, ast.Expr) and "faults.append" in ast.unparse(node):
                    yield node, _replacement(block, index, ast.Pass())


def _replacement(block: list[Any], index: int, instead: ast.stmt) -> Callable[[], None]:
    def replace() -> None:
        block[index] = ast.copy_location(instead, block[index])

    return replace


class MutantFinder(MetaPathFinder, Loader):
    """Imports one module from a mutant's code; stands before every other finder."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname == self._mutant.module else None

    def exec_module(self, module: ModuleType) -> None:
        exec(self._mutant.code, module.__dict__)


def is_killed(mutant: Mutant | None, part: Part) -> bool:
    """Whether a test fails with the mutant in place, or as things are; runs in a child of its own.

    A child that is ended by a limit has failed too. Raises RuntimeError where the tests could not run at all.
    """
    pid = os.fork()
    if pid == 0:
        code = BROKEN
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (PATIENCE_S, PATIENCE_S))
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES + _address_space_bytes(),) * 2)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            if mutant is not None:
                sys.meta_path.insert(0, MutantFinder(mutant))
            code = verdict(part)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == BROKEN:
        raise RuntimeError("the tests cannot run in a child")
    return code != SURVIVES


def verdict(part: Part) -> int:
    """SURVIVES where all cases come to what they must and all tests pass, KILLED where one does not, else BROKEN."""
    from importlib import import_module

    import pytest
    from hostile.readers import READERS

    with tempfile.TemporaryDirectory() as folder:
        for name in part.cases:
            for number, case in enumerate(import_module(f"hostile.{name}").CASES):
                own = Path(folder) / f"{name}-{number}"
                own.mkdir()
                if not _as_expected(case, READERS[case.reader], case.build(own)):
                    return KILLED
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    outcome = pytest.main([*options, *(str(ROOT / test) for test in part.tests)])
    return {pytest.ExitCode.OK: SURVIVES, pytest.ExitCode.TESTS_FAILED: KILLED}.get(pytest.ExitCode(outcome), BROKEN)


def _as_expected(case: Any, read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except Exception as error:
        has_place = not case.has_place or getattr(error, "offset", None) is not None
        return type(error).__name__ == case.error and re.search(case.match, str(error)) is not None and has_place
    return case.error is None


def _address_space_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main(names: list[str]) -> int:
    """Prints a line a mutant; 1 where one survives."""
    sys.path[0] = str(ROOT / "tests")
    # Loaded once, for all children; nothing of the package may be, and no plugin of pytest.
    import numpy
    import torch

    del numpy, torch
    survivors = n_mutants = 0
    for name in names or PARTS:
        part = PARTS[name]
        if is_killed(None, part):
            print(f"{name}: a test fails without any mutant")
            return 1
        for module, pattern in part.modules.items():
            for mutant in mutants(module, pattern):
                n_mutants += 1
                killed = is_killed(mutant, part)
                survivors += not killed
                print(f"{'killed  ' if killed else 'SURVIVES'} {mutant.module}:{mutant.line} {mutant.text}", flush=True)
    print(f"{n_mutants} checks disabled, {survivors} went unnoticed")
    return 1 if survivors or not n_mutants else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
