"""powerinfer-perplexity: figures, tables, and its ways to fail."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from powerinfer_py import LLM
from powerinfer_py.cli import perplexity
from powerinfer_py.profiler.documents import CALIBRATION_TEXT

FAST = ["-c", "64", "-t", "1"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(CALIBRATION_TEXT.read_text(encoding="utf-8")[:700], encoding="utf-8")
    return path


def test_figures_against_the_definition(fixtures: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Windows of 64, BOS first, the tokens at places 33 to 63 scored."""
    model = fixtures / "relu-falcon.powerinfer.gguf"
    command = ["-m", str(model), "-f", str(text), "--sparsity", "dense", "--chunks", "3", "--json", *FAST]
    assert perplexity.main(command) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    report = json.loads(captured.out)
    losses: list[float] = []
    with LLM(model, sparsity="dense", threads=1) as llm:
        ids = llm.tokenize(text.read_text(encoding="utf-8"))
        for start in (0, 64, 128):
            window = ids[start : start + 64]
            if llm.tokenizer.add_bos:
                window[0] = llm.tokenizer.bos_id or 0
            logits = llm.logits(window).astype(np.float64)[32:63]
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            losses += (-log_p[np.arange(31), window[33:]]).tolist()
    assert (report["windows"], report["scored_tokens"], report["context"]) == (3, 93, 64)
    assert report["perplexity"]["value"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert report["compared"] is None
    assert report["predictors"] is None


def test_cache_types_change_the_digits(fixtures: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-m", str(fixtures / "bamboo.powerinfer.gguf"), "-f", str(text), "--json", "--chunks", "2", *FAST]
    values = []
    for options in ([], ["-ctk", "q8_0"], ["-ctv", "q8_0"]):
        assert perplexity.main([*command, *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert [report["cache_type_k"], report["cache_type_v"]].count("q8_0") == len(options) // 2
        values.append(report["perplexity"]["value"])
    assert len(set(values)) == 3
    assert values[1:] == pytest.approx([values[0]] * 2, rel=0.01)


def test_comparison(fixtures: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["-m", str(fixtures / "bamboo.powerinfer.gguf"), "-f", str(text), "--compare", "dense", *FAST]
    assert perplexity.main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sparsity"] == "predictor"
    assert report["compared"]["sparsity"] == "dense"
    divergence = report["compared"]["kl_divergence"]
    assert 0 < divergence["p50"] <= divergence["p90"] <= divergence["p99.9"] <= divergence["max"]
    assert 0 < report["neurons_computed_share"] < 1
    assert len(report["predictors"]) == 2
    for layer in report["predictors"]:
        assert 0 < layer["fired_share"] < 1
        assert layer["recall"] * layer["fired_share"] == pytest.approx(layer["precision"] * layer["predicted_share"])
    assert perplexity.main(command) == 0
    captured = capsys.readouterr()
    for heading in ("perplexity", "KL divergence", "same first choice", "neurons computed", "recall", "precision"):
        assert heading in captured.out
    assert "tokens/s" in captured.err
    # Against predictor mode nothing can be said of predictors: what was not predicted did not fire.
    assert perplexity.main([*command[:4], "--sparsity", "exact", "--compare", "predictor", "--json", *FAST]) == 0
    assert json.loads(capsys.readouterr().out)["predictors"] is None


def test_dense_models_and_strides_and_standard_input(
    fixtures: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
    model = str(fixtures / "relu-llama.powerinfer.gguf")
    command = ["-m", model, "-f", "-", "--sparsity", "dense", "--stride", "32", "--activation", "silu", "--json"]
    assert perplexity.main([*command, *FAST]) == 0
    report = json.loads(capsys.readouterr().out)
    with LLM(model) as llm:
        n_tokens = len(llm.tokenize(text.read_text(encoding="utf-8"), add_bos=False))
    assert (report["stride"], report["scored_tokens"]) == (32, n_tokens)


def test_errors_are_one_line(fixtures: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").touch()
    m = ["-m", str(fixtures / "bamboo.powerinfer.gguf")]
    f = ["-f", str(text)]
    for arguments, message in (
        ([*m, "-f", str(tmp_path / "empty")], "the text is empty"),
        ([*m, *f, "--sparsity", "dense", "--compare", "dense", *FAST], "nothing to compare"),
        ([*m, *f, "--stride", "64", *FAST], "--stride must be from 1 to 63"),
        ([*m, *f, "-c", "3"], "at least 4"),
        ([*m, *f, "-c", "99999"], "context"),
        (["-m", str(tmp_path / "empty"), *f], "empty"),
        (["-m", str(fixtures / "llama_cpp" / "llama.gguf"), *f, "--sparsity", "exact"], "silu"),
    ):
        assert perplexity.main(arguments) == 1, arguments
        captured = capsys.readouterr()
        assert captured.out == ""
        assert message in captured.err
        assert captured.err.splitlines()[-1].startswith("powerinfer-perplexity: error: ")


@pytest.mark.parametrize("arguments", [[], ["-m", "x"], ["-m", "x", "-f", "y", "--chunks", "0"]])
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        perplexity.main(arguments)
    assert caught.value.code == 2
    assert "usage: powerinfer-perplexity" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "expected"), [("--help", "examples:"), ("--version", "powerinfer-perplexity")])
def test_help_and_version(option: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        perplexity.main([option])
    assert caught.value.code == 0
    assert expected in capsys.readouterr().out
