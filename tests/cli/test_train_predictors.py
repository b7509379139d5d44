"""powerinfer-train-predictors as a user calls it: options, recipes of every family, what it prints, how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_families import FAMILIES, family_model
from helpers_predictable import write_predictable, write_text

from powerinfer_py.cli import train_predictors
from powerinfer_py.cli.recipe import read_recipe
from powerinfer_py.cli.train_predictors import RECIPE_OPTIONS, build_parser, job_from
from powerinfer_py.errors import OptionError
from powerinfer_py.predictor.making import GIB, Job
from powerinfer_py.predictor.training import TrainingOptions

RECIPES = Path(__file__).parents[2] / "predictors" / "recipes"
# A recipe is for full size; these make it fit a fixture and a test.
TINY = ["--tokens", "640", "--window", "32", "--epochs", "1", "--rank", "8"]


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 600)


def parsed(*arguments: object) -> Job:
    required = ["-m", "m.gguf", "-f", "a.txt", "b.txt", "-o", "out"]
    return job_from(build_parser().parse_args([*required, *map(str, arguments)]))


def test_defaults() -> None:
    job = parsed()
    assert job == Job(Path("m.gguf"), (Path("a.txt"), Path("b.txt")), Path("out"))
    assert job.training == TrainingOptions()
    assert (job.method, job.rank, job.budget, job.max_disk_bytes) == ("trained", None, 0.1, 20 * GIB)


def test_options() -> None:
    job = parsed("--rank", "auto", "--budget", "12.5%", "--max-disk", "0.5", "--target-recall", "0.95", "--seed", 4)
    assert (job.rank, job.budget, job.max_disk_bytes, job.seed) == (None, 0.125, GIB // 2, 4)
    assert job.training.target_recall == 0.95
    job = parsed("--rank", 64, "--method", "svd", "--batch", 32, "--epochs", 3, "--learning-rate", "0.01")
    assert (job.rank, job.method, job.training) == (64, "svd", TrainingOptions(3, 0.01, 32))


@pytest.mark.parametrize(
    "wrong",
    [
        ["--rank", "many"],
        ["--rank", "-4"],
        ["--budget", "much"],
        ["--method", "magic"],
        ["--device", "tpu"],
        ["--epochs", "x"],
        ["--targ", "0.9"],
    ],
)
def test_usage_errors_exit_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parsed(*wrong)
    assert exit_.value.code == 2
    assert wrong[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["-m", "m.gguf"],
        ["--merge", "a", "-m", "m.gguf"],
        ["--merge", "a", "--layers", "0-1"],
        ["--merge", "a", "--calibrate", "t"],
        ["--merge", "a", "--max-disk", "1"],
        ["--merge", "a", "--device", "cpu"],
        ["--merge", "a", "-t", "1"],
        ["-m", "m", "-f", "t", "--layers", "3-1"],
        ["-m", "m", "-f", "t", "--layers", "x"],
    ],
)
def test_misuse_exits_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        train_predictors.main([*wrong, "-o", "out"])
    assert exit_.value.code == 2
    assert "usage: powerinfer-train-predictors" in capsys.readouterr().err


def test_two_halves_merged_are_the_whole(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["-m", str(write_predictable(tmp_path / "model.gguf")), "-f", str(text), *TINY, "--json"]
    assert train_predictors.main([*common, "-o", str(tmp_path / "whole")]) == 0
    whole = json.loads(capsys.readouterr().out)
    for layer in ("0", "1"):
        assert train_predictors.main([*common, "-o", str(tmp_path / layer), "--layers", layer]) == 0
        assert not (tmp_path / layer / "config.json").exists()
        captured = capsys.readouterr()
        assert "1 of 2 layers are not made yet" in captured.err
        assert json.loads(captured.out)["layers"] == [whole["layers"][int(layer)]]
    halves = [str(tmp_path / "1"), str(tmp_path / "0")]
    assert train_predictors.main(["--merge", *halves, "-o", str(tmp_path / "merged"), "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert (merged["layers"], merged["bytes"]) == (whole["layers"], whole["bytes"])
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "merged").iterdir())
    for name in names:
        if name != "training.json":
            assert (tmp_path / "merged" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((tmp_path / "merged" / "training.json").read_text()) == json.loads(
        (tmp_path / "whole" / "training.json").read_text()
    )


def test_halves_that_do_not_fit(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["-m", str(write_predictable(tmp_path / "model.gguf")), "-f", str(text), *TINY]
    for name, options in (("a", ["--layers", "0"]), ("b", ["--layers", "1", "--seed", "1"])):
        assert train_predictors.main([*common, "-o", str(tmp_path / name), *options]) == 0
    a, b, out = (str(tmp_path / name) for name in ("a", "b", "out"))
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    cases = [
        ([a, b], "was made with another seed"),
        ([a], "layer 1 is in none of these folders (1 of 2 missing)"),
        ([a, str(tmp_path / "empty")], "cannot read"),
    ]
    for folders, message in cases:
        assert train_predictors.main(["--merge", *folders, "-o", out]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    (tmp_path / "a" / "model_0.pt").write_bytes(b"half")
    assert train_predictors.main(["--merge", a, "-o", out]) == 1
    assert "is not the file that was recorded" in capsys.readouterr().err
    assert train_predictors.main([*common, "-o", a, "--layers", "1-2"]) == 1
    assert "the model has 0-1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [["--max-disk", "-1"], ["--max-disk", "nan"], ["--budget", "200%"], ["--rank", "2"]])
def test_values_out_of_range(wrong: list[str]) -> None:
    with pytest.raises(OptionError):
        parsed(*wrong)


def test_the_command_line_goes_before_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('family = "f"\nmeasured = "not run"\n[options]\nrank = 16\nepochs = 7\nbudget = 0.2\n')
    job = parsed("--recipe", recipe, "--rank", 8)
    assert (job.rank, job.training.epochs, job.budget) == (8, 7, 0.2)
    assert parsed("--recipe", recipe, "--rank", "auto").rank is None
    recipe.write_text('family = "f"\nmeasured = "not run"\n[options]\nrank = "big"\n')
    with pytest.raises(OptionError, match="rank is 'big'"):
        parsed("--recipe", recipe)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_runs_on_its_familys_fixture(
    family: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = family_model(family, tmp_path)
    recipe = RECIPES / f"{family}.toml"
    wanted = ["-m", model, "-f", text, "-o", tmp_path / "p", "--recipe", recipe, *TINY, "--json"]
    assert train_predictors.main([str(word) for word in wanted]) == 0
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert report["tokens"] == 640
    assert report["bytes"] == sum(layer["bytes"] for layer in report["layers"]) <= report["budget_bytes"]
    target = float(read_recipe(recipe, RECIPE_OPTIONS).get("target_recall", TrainingOptions.target_recall))
    for layer in report["layers"]:
        assert layer["rank"] == 8
        assert 0 < layer["fired_share"] < 1
        # Random weights: hard to foresee, but the shift makes up for it, within what 64 tokens can show.
        assert layer["recall"] > target - 0.02
    assert json.loads((tmp_path / "p" / "config.json").read_text()) == {"sparse_threshold": 0.0}
    assert output.err.splitlines()[0].startswith("640 tokens, ")


def test_table_and_resumption(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_predictable(tmp_path / "model.gguf")
    wanted = ["-m", str(model), "-f", str(text), "-o", str(tmp_path / "p"), *TINY, "--method", "svd"]
    assert train_predictors.main(wanted) == 0
    first = capsys.readouterr()
    assert "bytes of predictors" in first.out
    assert "layer 1: rank 8" in first.err
    assert train_predictors.main(wanted) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "2 of 2 layers are finished already" in second.err


@pytest.mark.parametrize("fault", ["empty text", "short text", "no model", "silu", "no text"])
def test_bad_input_is_one_line(fault: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_predictable(tmp_path / "model.gguf", magic="GGUF" if fault == "silu" else "PWRI")
    bad = tmp_path / "bad.txt"
    if fault in ("empty text", "short text"):
        bad.write_text("" if fault == "empty text" else "a few words")
        text = bad
    elif fault == "no text":
        text = bad
    elif fault == "no model":
        model = tmp_path / "none.gguf"
    assert train_predictors.main(["-m", str(model), "-f", str(text), "-o", str(tmp_path / "p")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("powerinfer-train-predictors: error: ")
    assert not (tmp_path / "p").exists()


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "powerinfer_py.cli.train_predictors", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("powerinfer-train-predictors (powerinfer-py) ")


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        train_predictors.main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "examples:" in out
    assert "10%" in out
