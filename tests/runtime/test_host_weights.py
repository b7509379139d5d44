"""Weights that are not packed although they could be are announced, and locked memory is the memory that is read."""

from __future__ import annotations

import pytest
from helpers_logits import FIXTURES

from powerinfer_py import LLM

QUANTISED = FIXTURES / "bamboo.q4.powerinfer.gguf"


def unpacked(llm: LLM) -> list[str]:
    return [line for line in llm.notices if "the file's order" in line]


def is_packed(llm: LLM) -> bool:
    return llm.engine.transformer.weights.layers[0].attention.output.matrix.packed


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
    with LLM(FIXTURES / "bamboo.powerinfer.gguf", threads=1) as llm:
        assert unpacked(llm) == []


def test_memory_locking_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[int] = []
    monkeypatch.setattr("powerinfer_py.runtime.host_weights.lock_in_memory", lambda data: locked.append(data.nbytes))
    with LLM(QUANTISED, threads=1, use_mlock=True) as llm:
        assert not is_packed(llm)
        assert "locking" in unpacked(llm)[0]
    # Everything that is multiplied, added or looked up; norms are copied.
    assert sum(locked) > 0.9 * 300_000
