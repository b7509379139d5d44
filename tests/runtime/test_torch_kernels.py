"""Whole models on the torch kernels: forced, or because there is no native extension. And what the kernels keep."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers_blocks import random_rows
from helpers_kernels import mask_of, same_bits, tokens
from helpers_logits import FIXTURES, TOKENS, nmse

from powerinfer_py import LLM
from powerinfer_py.gguf import GGMLType
from powerinfer_py.kernels import reference
from powerinfer_py.kernels.reference import ReferenceKernels

MODELS = sorted(path.name for path in FIXTURES.glob("*.powerinfer.gguf"))


@pytest.mark.parametrize("name", MODELS)
def test_fixtures_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the native kernels do, up to rounding: here 16 tokens at once are products of matrices, there dot products."""
    with LLM(FIXTURES / name, sparsity="exact", threads=2) as llm:
        native = llm.logits(TOKENS)
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    with LLM(FIXTURES / name, sparsity="exact", threads=2, repack=False) as llm:
        assert llm.notices == []
        actual = llm.logits(TOKENS)
        assert same_bits(torch.from_numpy(actual), torch.from_numpy(llm.logits(TOKENS)))
    # Integer dot products of packed rows round activations to 8 bits.
    assert nmse(native, actual) < (5e-4 if ".q4." in name else 1e-6)


def test_a_token_alone_and_in_a_prompt_agree_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    with LLM(FIXTURES / "relu-llama.powerinfer.gguf", sparsity="exact") as llm:
        whole = llm.logits(TOKENS)
    with LLM(FIXTURES / "relu-llama.powerinfer.gguf", sparsity="exact", batch_size=1) as llm:
        # A key or value whose last bit differs may round to its neighbour in float16.
        assert nmse(llm.logits(TOKENS), whole) < 1e-6


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_what_is_kept_changes_no_result_but_rounding(kept_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    path = FIXTURES / "relu-llama.q4.powerinfer.gguf"
    with LLM(path, sparsity="exact") as llm:
        expected = llm.logits(TOKENS)
    monkeypatch.setattr(reference, "KEPT_BYTES", kept_bytes)
    with LLM(path, sparsity="exact") as llm:
        assert nmse(llm.logits(TOKENS), expected) < 1e-6


def test_memory_of_a_model_beyond_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two matrices one fits; the other is dequantised a block at a time, whoever asks."""
    rows, cols = 64, 4096
    monkeypatch.setattr(reference, "KEPT_BYTES", 4 * rows * cols)
    monkeypatch.setattr(reference, "BLOCK_WEIGHTS", 8 * cols)
    most = 0

    def watched(data: np.ndarray, ggml_type: GGMLType, n_rows: int, n_cols: int, ids: np.ndarray) -> np.ndarray:
        nonlocal most
        most = max(most, len(ids))
        return dequantize_rows(data, ggml_type, n_rows, n_cols, ids)

    dequantize_rows = reference.dequantize_rows
    monkeypatch.setattr(reference, "dequantize_rows", watched)
    kernels, x = ReferenceKernels(), tokens(3, cols)
    results = []
    for seed in (1, 1):
        stored = random_rows(GGMLType.Q4_0, rows, cols, seed)
        matrix = kernels.matrix("w", stored.type, rows, cols, stored.data)
        results += [kernels.linear(matrix, x), kernels.accumulate_rows(matrix, tokens(3, rows), all_rows=True)[0]]
    assert most == 8
    assert torch.allclose(results[0], results[2], rtol=0, atol=1e-3)
    assert torch.allclose(results[1], results[3], rtol=0, atol=1e-3)


def test_only_wanted_rows_are_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = random_rows(GGMLType.Q8_0, 200, 64)
    kernels = ReferenceKernels()
    matrix = kernels.matrix("w", stored.type, 200, 64, stored.data)
    read: list[int] = []
    dequantize_rows = reference.dequantize_rows

    def watched(data: np.ndarray, ggml_type: GGMLType, n_rows: int, n_cols: int, ids: np.ndarray) -> np.ndarray:
        read.extend(ids.tolist())
        return dequantize_rows(data, ggml_type, n_rows, n_cols, ids)

    monkeypatch.setattr(reference, "dequantize_rows", watched)
    mask = mask_of(4, 200, 0.02)
    wanted = mask.any(dim=0).nonzero().flatten().tolist()
    assert 0 < len(wanted) < 40
    kernels.linear_masked(matrix, tokens(4, 64), mask)
    assert read == wanted
    # They are kept: nothing is read twice.
    kernels.accumulate_rows(matrix, tokens(4, 200) * mask)
    assert read == wanted


def test_a_package_without_the_extension_generates_and_says_what_is_lost() -> None:
    code = (
        "import sys\nsys.modules['powerinfer_py._native'] = None\n"
        "from powerinfer_py.cli.run import main\nsys.exit(main(sys.argv[1:]))"
    )
    model = FIXTURES / "relu-llama.q4.powerinfer.gguf"
    command = [sys.executable, "-c", code, "-m", str(model), "-p", "Hello", "-n", "8", "--temp", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POWERINFER_")}
    without = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = [line for line in without.stderr.splitlines() if "native kernels" in line]
    assert len(lines) == 1
    assert "slower torch kernels" in lines[0]
    forced = subprocess.run(
        [sys.executable, "-m", "powerinfer_py.cli.run", *command[3:]],
        capture_output=True,
        text=True,
        env=environment | {"POWERINFER_KERNELS": "torch"},
        check=True,
    )
    assert forced.stdout == without.stdout
    assert len(forced.stdout) > 1
    assert "native kernels" not in forced.stderr
