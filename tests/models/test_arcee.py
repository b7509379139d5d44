"""Squared ReLU with predictors: a PWRI file made of a recorded arcee model, in every sparse mode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_logits import FIXTURES, nmse
from helpers_models import write_arcee

from powerinfer_py import LLM

RECORDED = FIXTURES / "llama_cpp"
TOKENS = json.loads((RECORDED / "manifest.json").read_text(encoding="utf-8"))["tokens"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_arcee(tmp_path_factory.mktemp("arcee") / "arcee.powerinfer.gguf")


def logits(path: Path, sparsity: str) -> tuple[np.ndarray, float]:
    with LLM(path, sparsity=sparsity, threads=2) as llm:
        assert llm.config.activation == "relu2"
        return llm.logits(TOKENS), llm.stats.activity.share_computed


def test_dense_and_exact_equal_the_recording(model: Path) -> None:
    expected = np.load(RECORDED / "logits.npz")["arcee.kv_f16"]
    dense, _ = logits(model, "dense")
    assert nmse(dense, expected) < 1e-6
    assert np.array_equal(logits(model, "exact")[0], dense)


def test_predictor_drops_neurons(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some, share = logits(model, "predictor")
    assert 0.2 < share < 0.8
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    reference, reference_share = logits(model, "predictor")
    assert share == pytest.approx(reference_share, abs=0.01)
    assert nmse(some, reference) < 1e-6


def test_predictor_that_names_every_neuron_equals_dense(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SPARSE_PRED_THRESHOLD", "-1000000")
    everything, share = logits(model, "predictor")
    assert share == 1.0
    assert np.array_equal(everything, logits(model, "dense")[0])
