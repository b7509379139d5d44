"""powerinfer-profile: runs, merges, reports, and its ways to fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers_families import FAMILIES, family_model

from powerinfer_py.cli import profile
from powerinfer_py.cli.recipe import read_recipe
from powerinfer_py.placement.statistics.profile import ProfileSettings, read_profile
from powerinfer_py.profiler import plot
from powerinfer_py.profiler.documents import CALIBRATION_TEXT

RECIPES = Path(__file__).parents[3] / "profiling" / "recipes"
FAST = ["-c", "64", "-t", "1"]


@pytest.fixture
def model(fixtures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(fixtures / "bamboo.powerinfer.gguf", tmp_path / "model.gguf"))


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    prose = CALIBRATION_TEXT.read_text(encoding="utf-8")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text(prose[:300], encoding="utf-8")
    paths[1].write_text(prose[300:600], encoding="utf-8")
    return [str(path) for path in paths]


def test_the_built_in_text_beside_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["-m", str(model), "--tokens", "100", *FAST]) == 0
    captured = capsys.readouterr()
    assert "bamboo, 2 layers of 1024 neurons, drelu: 100 tokens" in captured.out
    assert "tokens/s" in captured.err
    assert read_profile(model.parent / "activation").n_tokens == 100
    assert profile.main(["-m", str(model), "--tokens", "100", *FAST]) == 0
    assert "were there already" in capsys.readouterr().err


def test_json_and_merge(model: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for name, files in (("whole", texts), ("one", texts[:1]), ("two", texts[1:])):
        assert profile.main(["-m", str(model), "-f", *files, "-o", str(tmp_path / name), "--json", *FAST]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert captured.out.count("\n") == 1
        reports.append(json.loads(captured.out))
    sources = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert profile.main(["--merge", *sources, "-o", str(tmp_path / "merged"), "--json"]) == 0
    merged = json.loads(capsys.readouterr().out)
    for key in ("tokens", "texts", "text_sha256", "layers", "overall", "curves", "model", "settings"):
        assert merged[key] == reports[0][key], key
    assert reports[0]["timing"]["tokens"] == merged["tokens"]
    for arguments in (
        ["--merge", *sources, "-o", sources[0]],
        ["--merge", sources[0], sources[0], "-o", str(tmp_path / "x")],
        ["--merge", sources[0], str(tmp_path / "absent"), "-o", str(tmp_path / "x")],
    ):
        assert profile.main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1


def test_cache_types_are_part_of_a_run(
    model: Path, texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text, options in (("f16", texts[0], []), ("q8_0", texts[1], ["-ctk", "q8_0", "--cache-type-v", "q8_0"])):
        assert profile.main(["-m", str(model), "-f", text, "-o", str(tmp_path / name), *options, *FAST]) == 0
    settings = [read_profile(tmp_path / name).settings for name in ("f16", "q8_0")]
    assert [(each.cache_type_k, each.cache_type_v) for each in settings] == [("f16", "f16"), ("q8_0", "q8_0")]
    # The folder is of a run with another cache.
    assert profile.main(["-m", str(model), "-f", texts[1], "-o", str(tmp_path / "q8_0"), *FAST]) == 1
    capsys.readouterr()
    sources = [str(tmp_path / "f16"), str(tmp_path / "q8_0")]
    assert profile.main(["--merge", *sources, "-o", str(tmp_path / "merged")]) == 1
    assert "cache_type_k is f16 in the first and q8_0 in another" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_runs_on_its_familys_fixture(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe is for full size: fewer tokens make it fit a fixture, all else is the recipe's."""
    recipe = RECIPES / f"{family}.toml"
    command = ["-m", str(family_model(family, tmp_path)), "--recipe", str(recipe), "-o", str(tmp_path / "out")]
    options = read_recipe(recipe, profile.RECIPE_OPTIONS)
    # The fixtures have a context of 256.
    small = ["-c", "64"] if options["ctx_size"] > 256 else []
    assert profile.main([*command, *small, "--tokens", "70", "-t", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tokens"] == 70
    context = 64 if small else options["ctx_size"]
    assert report["settings"]["context"] == context
    assert report["settings"]["batch_size"] == min(context, options["batch_size"])
    assert 0 < report["overall"]["silent"] < 1


def test_the_command_line_goes_before_the_recipe(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    about = 'family = "f"\nmeasured = "not run"\n[options]\n'
    recipe.write_text(about + 'tokens = 50\nctx_size = 32\nbatch_size = 8\ncache_type_k = "q8_0"\n')
    command = ["-m", str(model), "--recipe", str(recipe), "-t", "1"]
    assert profile.main([*command, "-o", str(tmp_path / "a")]) == 0
    found = read_profile(tmp_path / "a")
    assert (found.n_tokens, found.settings) == (50, ProfileSettings(32, 8, cache_type_k="q8_0"))
    assert profile.main([*command, "-o", str(tmp_path / "b"), "--tokens", "20", "-c", "16", "-ctk", "f16"]) == 0
    found = read_profile(tmp_path / "b")
    assert (found.n_tokens, found.settings) == (20, ProfileSettings(16, 8))
    for wrong in ("tokens = 0\n", "batch_size = -1\n", 'cache_type_v = "q2"\n', "layers = 3\n"):
        recipe.write_text(about + wrong)
        assert profile.main([*command, "-o", str(tmp_path / "c")]) == 1


def test_plot(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    picture = tmp_path / "hot.png"
    command = ["-m", str(model), "--tokens", "20", "--plot", str(picture), *FAST]
    assert profile.main(command) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    shutil.rmtree(model.parent / "activation")
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    assert profile.main(command) == 1
    error = capsys.readouterr().err
    assert "matplotlib" in error
    assert error.count("\n") == 1
    assert not (model.parent / "activation").exists(), "it is said before the work"


def test_an_interrupt_says_how_to_go_on(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from powerinfer_py.profiler.run import ProfileRun

    def interrupted(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProfileRun, "_run_chunk", interrupted)
        assert profile.main(["-m", str(model), "--tokens", "20", *FAST]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert profile.main(["-m", str(model), "--tokens", "20", *FAST]) == 0


def test_errors_are_one_line(model: Path, fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"empty": b" \n", "latin": b"caf\xe9", "short": b"A few words."}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "file").touch()
    m = ["-m", str(model)]
    for arguments, message in (
        ([*m, "-f", str(tmp_path / "empty")], "the text is empty"),
        ([*m, "-f", str(tmp_path / "latin")], "is not UTF-8 text (at byte 3)"),
        ([*m, "-f", str(tmp_path / "short"), "-c", "100"], "too few"),
        ([*m, "-f", str(tmp_path / "absent")], "cannot be read"),
        ([*m, "-o", str(tmp_path / "file")], "cannot make this folder"),
        ([*m, "--activation", "sine"], "activation"),
        ([*m, "--plot", "picture.txt"], ".png"),
        ([*m, "-c", "99999"], "context"),
        (["-m", str(fixtures / "llama_cpp" / "llama.gguf")], "silu"),
        (["-m", str(tmp_path / "short")], "short"),
        (["-m", str(tmp_path / "absent")], "absent"),
    ):
        assert profile.main(arguments) == 1, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
        assert captured.err.startswith("powerinfer-profile: error: ")
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-m", "x", "--tokens", "0"],
        ["-m", "x", "--token", "5"],
        ["-m", "x", "--same-text"],
        ["--merge", "a", "b"],
        ["--merge", "a", "b", "-o", "c", "-m", "x"],
        ["--merge", "a", "-o", "c", "-f", "x"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        profile.main(arguments)
    assert caught.value.code == 2
    assert "usage: powerinfer-profile" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "expected"), [("--help", "examples:"), ("--version", "powerinfer-profile")])
def test_help_and_version(option: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        profile.main([option])
    assert caught.value.code == 0
    assert expected in capsys.readouterr().out
