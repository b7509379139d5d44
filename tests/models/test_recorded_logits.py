"""Every fixture model against logits of PowerInfer's engine and of Hugging Face transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_logits import FIXTURES, TOKENS, nmse, recorded
from helpers_models import write_opt

from powerinfer_py import LLM

NAMES = ["relu-llama", "bamboo", "relu-falcon"]
# NMSE against an engine that rounds activations to 8 bits for quantised weights and the predictor's input to float16.
BOUNDS = {("f16", "allactive"): 1e-6, ("q4", "allactive"): 2e-3, ("f16", "sparse"): 5e-3, ("q4", "sparse"): 3e-2}
KERNELS = ["native", "torch"]


def logits(path: Path, sparsity: str) -> np.ndarray:
    with LLM(path, sparsity=sparsity, threads=2) as llm:
        return llm.logits(TOKENS)


@pytest.fixture(scope="module")
def opt_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("opt")
    return {
        "pwri": write_opt(folder / "opt.powerinfer.gguf"),
        "gguf": write_opt(folder / "opt.gguf", predictors=False, neurons_as_rows=False),
    }


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["allactive", "sparse"])
@pytest.mark.parametrize("quantisation", ["f16", "q4"])
@pytest.mark.parametrize("name", NAMES)
def test_powerinfer(name: str, quantisation: str, kind: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_KERNELS", kernels)
    infix = ".q4" if quantisation == "q4" else ""
    sparsity = "dense" if kind == "allactive" else "predictor"
    actual = logits(FIXTURES / f"{name}{infix}.powerinfer.gguf", sparsity)
    assert nmse(actual, recorded(f"{name}{infix}.{kind}.f32")) < BOUNDS[quantisation, kind]


@pytest.mark.parametrize("name", NAMES)
def test_all_active_by_threshold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SPARSE_PRED_THRESHOLD", "-1000000")
    actual = logits(FIXTURES / f"{name}.powerinfer.gguf", "predictor")
    assert nmse(actual, recorded(f"{name}.allactive.f32")) < 1e-6


@pytest.mark.parametrize("name", ["relu-llama", "relu-falcon"])
def test_transformers(name: str) -> None:
    assert nmse(logits(FIXTURES / f"{name}.powerinfer.gguf", "dense"), recorded(f"{name}.transformers.f32")) < 1e-6


@pytest.mark.parametrize("sparsity", ["dense", "exact"])
@pytest.mark.parametrize("kind", ["pwri", "gguf"])
def test_transformers_opt(opt_files: dict[str, Path], kind: str, sparsity: str) -> None:
    assert nmse(logits(opt_files[kind], sparsity), recorded("opt.transformers.f32")) < 1e-6


def test_opt_predictors_choose_neurons(opt_files: dict[str, Path]) -> None:
    with LLM(opt_files["pwri"], threads=2) as llm:
        llm.logits(TOKENS)
        assert llm.sparsity == "predictor"
        assert 0.0 < llm.stats.activity.share_computed < 1.0


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}.q4" for name in NAMES)])
def test_exact_equals_dense(name: str) -> None:
    """Bit for bit: leaving out neurons that are silent does not change the order of any sum."""
    path = FIXTURES / f"{name}.powerinfer.gguf"
    assert np.array_equal(logits(path, "exact"), logits(path, "dense"))
