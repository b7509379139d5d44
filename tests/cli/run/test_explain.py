"""`powerinfer-run --explain` and `--plot`: a table a layer, its twin in JSON, a picture, and who may not have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_logits import FIXTURES

from powerinfer_py.cli.run import main
from powerinfer_py.generation.explanation import Explanation
from powerinfer_py.profiler import plot

MODEL = str(FIXTURES / "relu-llama.q4.powerinfer.gguf")
RUN = ("-m", MODEL, "-p", "Hello, world!", "-n", "4", "-t", "1", "--temp", "0", "--ignore-eos")


def table(text: str) -> list[list[str]]:
    """The cells of the table behind its heading."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["layer", "fired"])
    return [line.split() for line in lines[start + 1 :]]


def test_a_row_a_layer_and_one_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--explain"]) == 0
    captured = capsys.readouterr()
    assert "ms/token" not in captured.out
    rows = table(captured.err)
    assert [row[0] for row in rows] == [*map(str, range(12)), "all"]
    shares = [float(row[1].rstrip("%")) for row in rows]
    assert shares[-1] == pytest.approx(sum(shares[:-1]) / 12, abs=0.01)
    times = [float(row[5]) for row in rows]
    assert times[-1] == pytest.approx(sum(times[:-1]), abs=0.01)
    assert "3 tokens decoded" in captured.err


def test_without_asking_nobody_watches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("a run that did not ask was watched")

    monkeypatch.setattr(Explanation, "__init__", refuse)
    assert main(RUN) == 0
    assert "ms/token" not in capsys.readouterr().err


def test_json_holds_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--explain", "--json"]) == 0
    captured = capsys.readouterr()
    explanation = json.loads(captured.out)["explanation"]
    assert explanation["neurons_per_layer"] == 1024
    assert explanation["decode"]["tokens"] == 3
    assert len(explanation["decode"]["layers"]) == 12
    assert "ms/token" not in captured.err
    assert main([*RUN, "--json"]) == 0
    assert "explanation" not in json.loads(capsys.readouterr().out)


def test_a_picture_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib import image

    picture = tmp_path / "fired.png"
    assert main([*RUN, "-np", "2", "--plot", str(picture)]) == 0
    assert "ms/token" not in capsys.readouterr().err
    pixels = image.imread(picture)
    assert pixels.shape[:2] == (540, 1440)
    assert pixels.std() > 0.05


def test_a_prompt_alone_is_explained_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "fired.svg"
    assert main(["-m", MODEL, "-p", "Hello", "-n", "0", "-t", "1", "--explain", "--plot", str(picture)]) == 0
    assert "of the prompt" in capsys.readouterr().err
    assert "<svg" in picture.read_text()


@pytest.mark.parametrize("has_matplotlib", [True, False])
def test_what_keeps_a_picture_from_being_drawn_is_said_before_loading(
    has_matplotlib: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = tmp_path / ("fired.jpg" if has_matplotlib else "fired.png")
    if not has_matplotlib:
        monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    try:
        code = main(["-m", str(tmp_path / "none.gguf"), "-p", "Hello", "--plot", str(picture)])
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code == (2 if has_matplotlib else 1)
    assert error.count("\n") == 1
    assert ("must end in .png" if has_matplotlib else "pip install 'powerinfer-py[plot]'") in error


@pytest.mark.parametrize("flags", [("--explain",), ("--plot", "fired.png")])
def test_conversations_are_not_watched(flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-m", MODEL, "-i", *flags])
    assert ended.value.code == 2
    assert "not --interactive" in capsys.readouterr().err
