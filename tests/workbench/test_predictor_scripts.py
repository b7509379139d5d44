"""predictors/compare_methods.py and plot_recall.py on tiny input."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_logits import FIXTURES
from helpers_predictable import N_FF, write_predictable, write_text
from helpers_scripts import ROOT, last_line, one_line_error, script

from powerinfer_py.predictor.making import Job, make_predictors
from powerinfer_py.predictor.training import TrainingOptions
from powerinfer_py.profiler import plot

COMPARE = script("predictors/compare_methods.py")
PLOT = script("predictors/plot_recall.py")
HOT_NEURONS = script("profiling/plot_hot_neurons.py")
SMALL = ["--rank", "12", "--window", "32", "--tokens", "2000", "--epochs", "2", "--decode", "4", "-t", "1"]


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_compare_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = write_predictable(tmp_path / "model.gguf"), write_text(tmp_path / "text.txt", 1000)
    results = tmp_path / "results.json"
    result = last_line(COMPARE, ["-m", model, "-f", text, "-o", results, *SMALL], capsys)
    assert result == json.loads(results.read_text())
    assert (result["held_out"], result["made_before"]) == ({}, {})
    totals = result["totals"]
    assert set(totals) == {"trained", "svd", "svd_without_text", "sign_bits", "hottest", "hottest_as_svd"}
    for method in ("trained", "svd", "sign_bits"):
        assert totals[method]["recall"] > 0.98
    # A list of the same size knows no token, signs alone know little of it.
    for hottest, method in (("hottest", "trained"), ("hottest_as_svd", "svd")):
        assert totals[hottest]["predicted_share"] == pytest.approx(totals[method]["predicted_share"], abs=0.005)
        assert totals[hottest]["recall"] < totals[method]["recall"] - 0.1
    assert (
        totals["trained"]["predicted_share"] < totals["svd"]["predicted_share"] < totals["sign_bits"]["predicted_share"]
    )
    assert totals["trained"]["bytes"] == totals["svd"]["bytes"] == 2 * 2 * 12 * (64 + N_FF)
    assert totals["sign_bits"]["bytes"] == 2 * 64 * N_FF / 8
    speeds = result["decode_tokens_per_s"]
    assert speeds["sign_bits"] is None
    assert all(speeds[name] > 0 for name in (set(totals) - {"sign_bits"}) | {"exact", "dense"})
    assert result["perplexity"] == {}

    picture = tmp_path / "recall.png"
    ratios = last_line(PLOT, [results, "-o", picture], capsys)
    assert 1 < ratios["trained"] < ratios["sign_bits"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_held_out_text_and_predictors_made_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_predictable(tmp_path / "model.gguf")
    text, other = write_text(tmp_path / "a.txt", 600), write_text(tmp_path / "b.txt", 300, seed=1)
    make_predictors(
        Job(
            model,
            (text,),
            tmp_path / "svd",
            method="svd",
            rank=16,
            window=32,
            tokens=1000,
            budget=0.9,
            training=TrainingOptions(target_recall=0.98),
        )
    )
    # Both forms serve: all layers in predictors.safetensors here, a layer's own file at the end.
    for layer in (0, 1):
        (tmp_path / "svd" / f"model_{layer}.pt").unlink()
    made = ["--svd", tmp_path / "svd", "--held-out", other]
    result = last_line(COMPARE, ["-m", model, "-f", text, *made, *SMALL], capsys)
    assert result["held_out_tokens"] <= 2000
    assert result["texts"] == {"a.txt": hashlib.sha256(text.read_bytes()).hexdigest()}
    assert result["held_out"] == {"b.txt": hashlib.sha256(other.read_bytes()).hexdigest()}
    assert result["made_before"] == {"svd": 0.98}
    assert result["totals"]["svd"]["bytes"] == 2 * 2 * 16 * (64 + N_FF)
    neurons = result["layers"]["svd"][0]
    assert 0 < neurons["fired_share"] < neurons["predicted_share"] < 1
    perplexity = result["perplexity"]
    assert set(perplexity) == {"trained", "svd", "svd_without_text", "hottest", "hottest_as_svd", "exact"}
    for name, figures in perplexity.items():
        assert figures["sparsity"] == ("exact" if name == "exact" else "predictor")
        assert figures["compared"]["sparsity"] == "dense"
    # In a PWRI file both modes read the same rows in the same order.
    assert perplexity["exact"]["compared"]["log_perplexity_ratio"]["value"] == 0.0
    divergence = {name: figures["compared"]["kl_divergence"]["value"] for name, figures in perplexity.items()}
    assert 0 < divergence["trained"] < divergence["hottest"]
    torch.save({"fc1.weight": torch.zeros(4, 4), "fc2.weight": torch.zeros(4, 4)}, tmp_path / "svd" / "model_0.pt")
    arguments = ["-m", model, "-f", text, *made, *SMALL]
    assert "does not fit" in one_line_error(COMPARE, arguments, capsys)


@pytest.mark.parametrize("content", ["{}", '{"layers": {"trained": [{"layer": 0}]}}', "no json"])
def test_plot_of_something_else(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text(content)
    one_line_error(PLOT, [tmp_path / "r.json", "-o", tmp_path / "p.png"], capsys)


def test_plot_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    results = ROOT / "predictors" / "results" / "demo.json"
    for module, source in ((PLOT, results), (HOT_NEURONS, FIXTURES / "relu-llama-activation")):
        assert "powerinfer-py[plot]" in one_line_error(module, [source, "-o", tmp_path / "p.png"], capsys)


def test_compare_without_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_predictable(tmp_path / "model.gguf")
    assert "none.txt" in one_line_error(COMPARE, ["-m", model, "-f", tmp_path / "none.txt"], capsys)
    text = write_text(tmp_path / "text.txt", 20)
    arguments = ["-m", model, "-f", text, "--held-out", text]
    assert "the same text" in one_line_error(COMPARE, arguments, capsys)
    assert "rank 3" in one_line_error(COMPARE, ["-m", model, "-f", model, "--rank", "3"], capsys)
