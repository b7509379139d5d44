"""Bytes of a layer, and which layers go through one call."""

from __future__ import annotations

import pytest
from helpers_logits import FIXTURES

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models import transformer

NAME = "relu-llama.q4.powerinfer"


@pytest.fixture
def llm():
    with LLM(FIXTURES / f"{NAME}.gguf", sparsity="predictor", threads=1) as llm:
        yield llm


def layer_bytes(index: int) -> int:
    """Of the matrices of a layer, as the file's own table has them."""
    with open_gguf(FIXTURES / f"{NAME}.gguf") as file:
        tensors = [info for name, info in file.tensors.items() if name.startswith(f"blk.{index}.")]
        return sum(info.n_bytes for info in tensors if len(info.shape) == 2)


def test_a_layers_bytes_are_those_of_its_matrices(llm):
    for index, layer in enumerate(llm.engine.transformer.weights.layers):
        assert layer.n_bytes == layer_bytes(index)


def test_runs_hold_what_is_allowed_and_every_layer_once(llm):
    weights = llm.engine.transformer.weights
    n, size = len(weights.layers), layer_bytes(0)
    assert n >= 2
    for most in (0, 1, size - 1, size, 2 * size - 1, 2 * size, n * size - 1, n * size, 10 * n * size):
        runs = list(weights.runs(most))
        assert [i for run in runs for i in range(n)[run]] == list(range(n))
        assert all(run.stop - run.start == 1 or size * (run.stop - run.start) <= most for run in runs)
        assert len(runs) == -(-n // max(1, most // size))


def test_a_step_has_the_same_bits_in_one_call_as_in_many(monkeypatch):
    texts = []
    for most in (1, 2**30):
        monkeypatch.setattr(transformer, "STEP_BYTES", most)
        with LLM(FIXTURES / f"{NAME}.gguf", sparsity="predictor", threads=1) as llm:
            texts.append(llm.generate([[5, 6, 7]], SamplingParams(max_tokens=16, temperature=0.0))[0].token_ids)
            assert len(llm.engine.transformer._step_parts) == (1 if most > 1 else llm.config.n_layer)
    assert texts[0] == texts[1]
