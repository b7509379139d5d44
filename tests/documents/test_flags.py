"""Every flag that a document names exists: with the command it is given to, or, in prose, somewhere."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from helpers_documents import DOCUMENTS, ROOT, called_commands, read

from powerinfer_py.cli import main as umbrella
from powerinfer_py.cli.main import COMMANDS
from powerinfer_py.cli.run.refused import REFUSED

FLAG = re.compile(r"(?<![\w/=-])--?[a-zA-Z][\w-]*")
LONG_FLAG = re.compile(r"(?<![\w/=-])--[a-z][a-z0-9-]+")
SUBCOMMANDS = {"powerinfer-metadata": ("set", "new")}
# Of programs that are not ours.
OTHERS = {
    "--no-deps",  # pip
    "--force-reinstall",
    "--no-cache-dir",
    "--no-build-isolation",
    "--abbrev",  # git
    "--prefer-binary",
    "--recursive",
}


def help_text(module: str, *arguments: str) -> str:
    import contextlib
    import io

    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
        import_module(module).main([*arguments, "--help"])
    assert not ended.value.code
    return output.getvalue()


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Command -> the flags of its help."""
    result = {"powerinfer": set(FLAG.findall(umbrella.help_text())) | {"--help", "--version"}}
    for command in COMMANDS:
        name = f"powerinfer-{command.name}"
        texts = [help_text(command.module), *(help_text(command.module, sub) for sub in SUBCOMMANDS.get(name, ()))]
        result[name] = {flag for text in texts for flag in FLAG.findall(text)}
    return result


def test_every_command_has_help_with_examples_and_a_version(flags: dict[str, set[str]]) -> None:
    for command in COMMANDS:
        assert {"--help", "--version"} <= flags[f"powerinfer-{command.name}"], command.name
        assert "examples:" in help_text(command.module)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_flags_of_commands_exist(document: Path, flags: dict[str, set[str]]) -> None:
    for name, arguments in called_commands(document):
        assert name in flags, f"{document}: no command {name}"
        given = {argument.split("=")[0] for argument in arguments if re.match(r"--?[a-zA-Z]", argument)}
        assert given <= flags[name], f"{document}: {name} {' '.join(arguments)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_flags_in_prose_exist_somewhere(document: Path, flags: dict[str, set[str]]) -> None:
    known = set.union(*flags.values()) | OTHERS | {name for refused in REFUSED for name in refused.names}
    for folder in ("tools", "predictors", "profiling"):
        for script in (ROOT / folder).glob("*.py"):
            known |= set(re.findall(r'"(--[a-z][a-z0-9-]*)"', script.read_text(encoding="utf-8")))
    # The trainer of the demo model has a flag for each field of its settings and of the model's shape.
    settings = "".join((ROOT / f"tools/demo_{name}.py").read_text(encoding="utf-8") for name in ("training", "model"))
    known |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): .+ = ", settings, re.MULTILINE)}
    assert set(LONG_FLAG.findall(read(document))) - known == set()
