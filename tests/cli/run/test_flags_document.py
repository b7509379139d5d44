"""docs/flags.md against the parser's tables, in both directions: no flag missing, none invented, defaults equal."""

from __future__ import annotations

import re
from pathlib import Path

from powerinfer_py.cli.run.flags import FLAGS, Flag, Origin
from powerinfer_py.cli.run.parser import parse
from powerinfer_py.cli.run.refused import REFUSED

DOCUMENT = Path(__file__).parents[3] / "docs" / "flags.md"


def table(heading: str) -> list[list[str]]:
    """The cells of the one table under a heading, without its own heading lines."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows[1] == "|---|---|---|"
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows[2:]]


def names_in(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"`([^`]+)`", cell))


def differences() -> dict[tuple[str, ...], tuple[str, str]]:
    rows = table("Differences from PowerInfer's `main`")
    result = {names_in(flag): (theirs, ours) for flag, theirs, ours in rows}
    assert len(result) == len(rows)
    return result


def test_the_defaults_are_the_parsers() -> None:
    documented = [(names_in(flag), default, meaning) for flag, default, meaning in table("Defaults")]
    assert documented == [(flag.names, flag.default_text, flag.help) for flag in FLAGS]


def test_a_default_shown_as_a_value_is_what_the_parser_sets() -> None:
    args = parse([])

    def value_text(flag: Flag) -> str:
        value = getattr(args, flag.key)
        if flag.metavar is None:
            return "off" if value is False else "on"
        return "none" if value is None else str(value)

    for flag in FLAGS:
        if flag.shown_default is None:
            assert value_text(flag) == flag.default_text, flag.names
        else:
            assert getattr(args, flag.key) in (None, "", -1), flag.names


def test_differences_name_exactly_the_changed_added_and_refused_flags() -> None:
    different = [flag.names for flag in FLAGS if flag.origin is not Origin.SAME]
    assert list(differences()) == [
        *[flag.names for flag in FLAGS if flag.origin is Origin.CHANGED],
        *[flag.names for flag in FLAGS if flag.origin is Origin.ADDED],
        *[refused.names for refused in REFUSED],
    ]
    assert len(different) + len(REFUSED) == len(differences())


def test_added_and_refused_flags_say_so() -> None:
    documented = differences()
    for flag in FLAGS:
        if flag.origin is not Origin.SAME:
            theirs, ours = documented[flag.names]
            assert (theirs == "does not exist") == (flag.origin is Origin.ADDED)
            assert ours
    for refused in REFUSED:
        assert documented[refused.names] == ("exists", f"refused: {refused.reason}")


def test_the_changed_defaults_are_named() -> None:
    documented = differences()
    assert documented["--repeat-penalty",] == ("1.1", "1.0, off")
    assert documented["-c", "--ctx-size"][0] == "512"
