"""Recipes: what the shipped ones say, and files that are none."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from helpers_families import FAMILIES

from powerinfer_py.cli import profile, train_predictors
from powerinfer_py.cli.recipe import read_recipe
from powerinfer_py.errors import FileFormatError

ROOT = Path(__file__).parents[2]
KNOWN = {"predictors": train_predictors.RECIPE_OPTIONS, "profiling": profile.RECIPE_OPTIONS}
SHIPPED = [path for folder in KNOWN for path in sorted((ROOT / folder / "recipes").iterdir())]


@pytest.mark.parametrize("folder", KNOWN)
def test_there_is_a_recipe_for_every_family(folder: str) -> None:
    assert sorted(path.name for path in (ROOT / folder / "recipes").iterdir()) == [f"{name}.toml" for name in FAMILIES]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_they_say_whom_they_are_for_and_what_was_seen(path: Path) -> None:
    recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    assert recipe["family"]
    assert recipe["models"]
    assert recipe["measured"]
    assert recipe["text"]
    assert read_recipe(path, KNOWN[path.parts[-3]]) == recipe["options"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "family is missing"),
        ("family = ", "no TOML"),
        ('family = "f"\nmeasured = "m"\n[options]\nranks = 3\n', "unknown key options.ranks"),
        ('family = "f"\nmeasured = "m"\nspeed = 1\n[options]\n', "unknown key speed"),
        ('family = "f"\nmeasured = "m"\n[options]\nepochs = "many"\n', "expected int"),
        ('family = "f"\nmeasured = "m"\n[options]\nepochs = true\n', "expected int"),
        ('family = "f"\nmeasured = "m"\noptions = 3\n', "options is 3"),
        ('family = "\x1b[31m', "no TOML"),
        (None, "cannot read"),
    ],
)
def test_recipes_that_are_none(content: str | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "r.toml").write_text(content)
    with pytest.raises(FileFormatError, match=reason) as error:
        read_recipe(tmp_path / "r.toml", train_predictors.RECIPE_OPTIONS)
    assert "\x1b" not in str(error.value)
