"""A token's logits do not depend on how it is batched: alone, in a prompt, in chunks, beside other sequences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_logits import FIXTURES, TOKENS, nmse

from powerinfer_py import LLM
from powerinfer_py.models.batch import ForwardBatch

MODELS = ["relu-llama", "relu-llama.q4", "bamboo.q4", "relu-falcon"]
MODES = ["predictor", "exact", "dense"]


def model(name: str) -> Path:
    return FIXTURES / f"{name}.powerinfer.gguf"


def batch(ids: list[int], positions: list[int], slots: list[int]) -> ForwardBatch:
    return ForwardBatch(torch.tensor(ids), torch.tensor(positions), torch.tensor(slots))


@pytest.mark.parametrize("sparsity", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_equals_whole_prompt(name: str, sparsity: str) -> None:
    with LLM(model(name), sparsity=sparsity, threads=2) as llm:
        whole = llm.logits(TOKENS)
        llm.engine.cache.truncate(0, 0)
        single = [llm.engine.forward(batch([token], [i], [0])).numpy() for i, token in enumerate(TOKENS)]
    assert np.array_equal(np.concatenate(single), whole)


@pytest.mark.parametrize("size", [1, 5, 7])
def test_chunks_equal_whole_prompt(size: int) -> None:
    with LLM(model("relu-llama.q4"), threads=2) as llm:
        whole = llm.logits(TOKENS)
    with LLM(model("relu-llama.q4"), threads=2, batch_size=size) as llm:
        assert np.array_equal(llm.logits(TOKENS), whole)


@pytest.mark.parametrize("sparsity", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_sequences_of_unequal_length_together(name: str, sparsity: str) -> None:
    """Four sequences, prompts and single tokens mixed in one forward."""
    sequences = [TOKENS, TOKENS[3:8], TOKENS[::-1][:7], TOKENS[5:6]]
    with LLM(model(name), sparsity=sparsity, threads=2, max_batch=4) as llm:
        alone = [llm.logits(ids) for ids in sequences]
        llm.engine.cache.truncate(0, 0)
        # All but the last token of each first, in one forward; then all the last tokens in another.
        first = [(token, i, slot) for slot, ids in enumerate(sequences) for i, token in enumerate(ids[:-1])]
        last = [(ids[-1], len(ids) - 1, slot) for slot, ids in enumerate(sequences)]
        prompt = llm.engine.forward(batch(*map(list, zip(*first, strict=True)))).numpy()
        step = llm.engine.forward(batch(*map(list, zip(*last, strict=True)))).numpy()
    together = np.split(prompt, np.cumsum([len(ids) - 1 for ids in sequences])[:-1])
    for expected, head, tail in zip(alone, together, step, strict=True):
        assert np.array_equal(np.concatenate([head, tail[None]]), expected)


@pytest.mark.parametrize("threads", [1, 3, 4, 8])
def test_threads_change_nothing(threads: int) -> None:
    with LLM(model("relu-llama.q4"), threads=2) as llm:
        expected = llm.logits(TOKENS)
    with LLM(model("relu-llama.q4"), threads=threads) as llm:
        assert np.array_equal(llm.logits(TOKENS), expected)


@pytest.mark.parametrize("sparsity", MODES)
def test_two_engines_make_a_pipeline(sparsity: str) -> None:
    """Ranges of layers composed give what one engine gives."""
    from powerinfer_py.config import RuntimeOptions, Sparsity
    from powerinfer_py.gguf import open_gguf
    from powerinfer_py.runtime.engine import Engine

    options = RuntimeOptions(sparsity=Sparsity(sparsity), threads=2)
    tokens = batch(TOKENS, list(range(len(TOKENS))), [0] * len(TOKENS))
    with open_gguf(model("relu-llama.q4")) as file:
        whole = Engine(file, options).forward(tokens)
        front, back = Engine(file, options, range(5)), Engine(file, options, range(5, 12))
        assert torch.equal(back.forward(tokens, front.forward(tokens)), whole)
        with pytest.raises(ValueError, match="residual stream"):
            back.forward(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_kernels_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch reference, in the mode without masks, where rounding cannot flip a neuron."""
    with LLM(model(name), sparsity="dense", threads=2) as llm:
        native = llm.logits(TOKENS)
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    with LLM(model(name), sparsity="dense", threads=2) as llm:
        # Beside quantised weights the native kernels round activations to 8 bits.
        assert nmse(llm.logits(TOKENS), native) < (5e-4 if name.endswith("q4") else 1e-6)
