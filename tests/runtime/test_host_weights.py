"""Weights that are not packed although they could be are announced, and locked memory is the memory that is read."""

from __future__ import annotations

import numpy as np
import pytest
from helpers_logits import FIXTURES

from powerinfer_py import LLM
from powerinfer_py.config import RuntimeOptions
from powerinfer_py.gguf import open_gguf
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.runtime.host_weights import FileWeights

QUANTISED = FIXTURES / "bamboo.q4.powerinfer.gguf"
PLAIN = FIXTURES / "bamboo.powerinfer.gguf"


def unpacked(llm: LLM) -> list[str]:
    return [line for line in llm.notices if "the file's order" in line]


def layer_matrices(llm: LLM) -> tuple[Matrix, Matrix]:
    """One that is multiplied, and one whose rows are added up."""
    layer = llm.engine.transformer.weights.layers[0]
    return layer.attention.output.matrix, layer.feed_forward.weights.down


def is_packed(llm: LLM) -> bool:
    return layer_matrices(llm)[0].packed


def test_packed_by_default() -> None:
    with LLM(QUANTISED, threads=1) as llm:
        assert is_packed(llm)
        assert unpacked(llm) == []


def test_asked_for() -> None:
    with LLM(QUANTISED, threads=1, repack=False) as llm:
        assert not is_packed(llm)
        assert unpacked(llm) == []


def test_too_little_memory_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("powerinfer_py.runtime.host_weights.fits_in_memory", lambda _n_bytes: False)
    with LLM(QUANTISED, threads=1) as llm:
        assert not is_packed(llm)
        assert "available memory" in unpacked(llm)[0]
    with LLM(PLAIN, threads=1) as llm:
        assert not layer_matrices(llm)[0].copied
        assert "available memory" in unpacked(llm)[0]


def test_what_cannot_be_packed_is_copied_out_of_the_file() -> None:
    """But for embeddings, of which a token reads one row; and the arithmetic stays the same."""
    ids = [1, 5, 9, 2, 7]
    with LLM(PLAIN, threads=1) as llm:
        assert all(matrix.copied and not matrix.packed for matrix in layer_matrices(llm))
        assert not llm.engine.transformer.weights.token_embd.copied
        copied = llm.logits(ids)
    with LLM(PLAIN, threads=1, repack=False) as llm:
        assert not any(matrix.copied for matrix in layer_matrices(llm))
        assert np.array_equal(llm.logits(ids), copied)
    with LLM(QUANTISED, threads=1) as llm:
        output, down = layer_matrices(llm)
        assert output.packed and down.copied and not down.packed


def test_the_cache_needs_its_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("powerinfer_py.runtime.host_weights.fits_in_memory", lambda n: asked.append(n) or True)
    monkeypatch.setattr("powerinfer_py.runtime.engine.host_bytes", lambda *_: 1234)
    with LLM(QUANTISED, threads=1, context_length=64) as llm:
        assert asked == [1234 + llm.engine.cache.n_bytes]


def test_locked_pages_are_not_let_go() -> None:
    """The system refuses to drop them: MADV_DONTNEED over locked pages is an error."""
    with open_gguf(PLAIN) as file:
        weights = FileWeights(file, NativeKernels(1), RuntimeOptions(use_mlock=True))
        info = file.tensors["token_embd.weight"]
        weights.table("token_embd.weight", *info.shape)
        with pytest.raises(OSError, match="Invalid argument"):
            file.release("token_embd.weight")
        weights.release("token_embd.weight")


def test_memory_locking_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[int] = []
    monkeypatch.setattr("powerinfer_py.runtime.host_weights.lock_in_memory", lambda data: locked.append(data.nbytes))
    with LLM(QUANTISED, threads=1, use_mlock=True) as llm:
        assert not is_packed(llm)
        assert "locking" in unpacked(llm)[0]
    # Everything that is multiplied, added or looked up; norms are copied.
    assert sum(locked) > 0.9 * 300_000
