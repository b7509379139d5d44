"""profiling/compare_corpora.py on small statistics whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_logits import FIXTURES
from helpers_scripts import last_line, one_line_error, script

from powerinfer_py.profiler import plot

COMPARE = script("profiling/compare_corpora.py")


def statistics(folder: Path, *layers: list[int]) -> Path:
    folder.mkdir()
    for layer, counts in enumerate(layers):
        torch.save(torch.tensor(counts), folder / f"activation_{layer}.pt")
    return folder


def test_known_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = statistics(tmp_path / "a", [50, 30, 10, 10], [1, 2, 3, 4], [0, 0, 0, 0])
    b = statistics(tmp_path / "b", [30, 10, 40, 20], [4, 3, 2, 1], [1, 1, 1, 1])
    output, picture = tmp_path / "results" / "ab.json", tmp_path / "ab.png"
    result = last_line(COMPARE, [a, b, "-o", output, "--plot", picture, "--names", "old", "new"], capsys)
    assert result == json.loads(output.read_text())
    assert picture.read_bytes().startswith(b"\x89PNG")
    first, second, third = result["layers"]
    # A's hot set is {0, 1}; B's {0, 2, 3}, of which the best two are {2, 0}.
    assert (first["hot"], first["overlap"], first["captured"], first["best"]) == (2, 0.25, 0.4, 0.7)
    assert second["rank_correlation"] == pytest.approx(-1.0)
    assert (second["hot"], second["overlap"]) == (3, 0.5)
    assert second["captured"] == pytest.approx(0.6)
    assert (third["hot"], third["captured"], third["rank_correlation"]) == (0, 0.0, None)
    assert result["overall"]["neurons"] == 12
    assert (result["a"]["activations"], result["a"]["name"], result["b"]["name"]) == (110, "old", "new")


def test_a_text_agrees_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    folder = FIXTURES / "relu-llama-activation"
    result = last_line(COMPARE, [folder, folder, "--share", "0.5"], capsys)
    assert len(result["layers"]) == 12
    for layer in [*result["layers"], result["overall"]]:
        assert layer["overlap"] == 1.0
        assert layer["captured"] == layer["best"] >= 0.5
        assert layer["rank_correlation"] == pytest.approx(1.0)


@pytest.mark.parametrize("fault", ["none", "other model", "share", "picture", "matplotlib"])
def test_errors_are_one_line(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = statistics(tmp_path / "a", [1, 2])
    b = statistics(tmp_path / "b", [1, 2, 3] if fault == "other model" else [2, 1])
    arguments: list[object] = [a, tmp_path / "absent" if fault == "none" else b]
    if fault == "share":
        arguments += ["--share", "2"]
    if fault == "picture":
        arguments += ["--plot", tmp_path / "picture.xyz"]
    if fault == "matplotlib":
        monkeypatch.setattr(plot, "find_spec", lambda _name: None)
        arguments += ["--plot", tmp_path / "picture.png", "-o", tmp_path / "result.json"]
    assert one_line_error(COMPARE, arguments, capsys).startswith("compare_corpora: error: ")
    assert not (tmp_path / "result.json").exists(), "it is said before anything is written"
