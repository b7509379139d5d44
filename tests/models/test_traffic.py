"""Bytes a token needs: against the sizes of the file's tensors, whichever rows were read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_logits import FIXTURES

from powerinfer_py import LLM
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.traffic import RowShares, decode_bytes, prompt_bytes

MODEL = FIXTURES / "relu-llama.q4.powerinfer.gguf"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, sparsity="predictor", threads=1) as loaded:
        loaded.logits([300, 400, 500])
        yield loaded


def sizes(path: Path = MODEL) -> dict[str, int]:
    with open_gguf(path) as file:
        return {name: info.n_bytes for name, info in file.tensors.items()}


def kind_bytes(*parts: str, without: str = "norm") -> int:
    return sum(size for name, size in sizes().items() if any(p in name for p in parts) and without not in name)


def test_a_decoded_token(llm: LLM) -> None:
    activity = llm.engine.activity
    with open_gguf(MODEL) as file:
        read = decode_bytes(file.tensors, RowShares.counted(activity), predictors_run=True, cache_bytes=1000.0)
    assert 0 < activity.share_of_rows < 1
    ffn = kind_bytes("ffn_")
    # Gate, up and down have the same size and type, so the mean share of rows is the share of bytes.
    assert read.ffn == pytest.approx(ffn * activity.share_of_rows)
    assert read.predictor == kind_bytes(".fc")
    embedding_row = sizes()["token_embd.weight"] / llm.config.n_vocab
    assert read.head == sizes()["output.weight"] + sizes()["output_norm.weight"] + embedding_row
    assert read.cache == 1000.0
    everything = sum(sizes().values()) - ffn * (1 - activity.share_of_rows) - sizes()["token_embd.weight"]
    assert read.total == pytest.approx(everything + embedding_row + 1000.0)
    assert read.total == pytest.approx(sum(read.to_dict().values()))


def test_every_row_and_no_predictor() -> None:
    with open_gguf(MODEL) as file:
        read = decode_bytes(file.tensors, RowShares(), predictors_run=False)
    assert (read.ffn, read.predictor) == (kind_bytes("ffn_"), 0)


def test_shares_keep_gate_up_and_down_apart(llm: LLM) -> None:
    """Up and down rows are read where the gate fired; gate rows wherever the predictor says so."""
    shares = RowShares.counted(llm.engine.activity)
    assert 0 < shares.up < shares.gate < 1
    with open_gguf(MODEL) as file:
        read = decode_bytes(file.tensors, shares, predictors_run=True)
    gate, up, down = (kind_bytes(f"ffn_{name}") for name in ("gate", "up", "down"))
    assert read.ffn == pytest.approx(gate * shares.gate + up * shares.up + down * shares.down)


def test_an_embedding_that_is_the_head_too() -> None:
    path = FIXTURES / "llama_cpp" / "llama-tied.gguf"
    with open_gguf(path) as file:
        assert "output.weight" not in file.tensors
        read = decode_bytes(file.tensors, RowShares(), predictors_run=False)
    assert read.head == sizes(path)["token_embd.weight"] + sizes(path)["output_norm.weight"]
    assert read.total == sum(sizes(path).values())


def test_a_prompt_reads_each_matrix_once_a_chunk() -> None:
    with open_gguf(MODEL) as file:
        whole = decode_bytes(file.tensors, RowShares(), predictors_run=True)
        read = prompt_bytes(file.tensors, predictors_run=True, tokens=100, chunks=2, cache_bytes=7.0)
        n_vocab = file.tensors["token_embd.weight"].shape[0]
    embedding_row = sizes()["token_embd.weight"] / n_vocab
    assert read.ffn == pytest.approx(whole.ffn / 50)
    assert read.attention == pytest.approx(whole.attention / 50)
    assert read.predictor == pytest.approx(whole.predictor / 50)
    assert read.head == pytest.approx((whole.head - embedding_row) / 100 + embedding_row)
    assert read.cache == 7.0
