"""NaN, infinities and absurd scales: found in every weight type, by name, and nowhere else."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from helpers_blocks import random_rows, smallest_cols

from powerinfer_py.errors import NumericalError
from powerinfer_py.gguf import GGMLType, GGUFWriter, dequantize, open_gguf
from powerinfer_py.gguf.tensor_check import Fault, TensorFault, check_tensors, require_sound_tensors
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, WEIGHT_TYPES

FIXTURES = Path(__file__).parents[1] / "fixtures"
# Bytes of the first scale in a block, as float16, and of the minimum where there is one.
SCALES = {
    GGMLType.Q4_0: (0,),
    GGMLType.Q4_1: (0, 2),
    GGMLType.Q5_0: (0,),
    GGMLType.Q5_1: (0, 2),
    GGMLType.Q8_0: (0,),
    GGMLType.Q2_K: (80, 82),
    GGMLType.Q3_K: (108,),
    GGMLType.Q4_K: (0, 2),
    GGMLType.Q5_K: (0, 2),
    GGMLType.Q6_K: (208,),
}
BITS = {
    Fault.NAN: {"<f4": 0x7FC00001, "<f2": 0xFE00, "bf16": 0xFFC1},
    Fault.INFINITE: {"<f4": 0xFF800000, "<f2": 0x7C00, "bf16": 0x7F80},
    Fault.ABSURD: {"<f4": 0x7F000000, "<f2": 0x7BFF, "bf16": 0xFF00},
}


def written(path: Path, ggml_type: GGMLType, data: np.ndarray, shape: tuple[int, int]) -> Path:
    with GGUFWriter(path, "GGUF") as writer:
        writer.add_tensor("good.weight", GGMLType.F32, (4,))
        writer.add_tensor("bad.weight", ggml_type, shape)
        writer.write_tensor("good.weight", np.array([0.0, -0.0, 1e-45, -300.0], np.float32))
        writer.write_tensor("bad.weight", data)
    return path


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=lambda t: t.name)
def test_one_fault_in_the_last_block(ggml_type: GGMLType, fault: Fault, tmp_path: Path) -> None:
    cols = 2 * smallest_cols(ggml_type)
    rows = random_rows(ggml_type, 3, cols)
    n_bytes = BLOCK_LAYOUTS[ggml_type].n_bytes
    last = 3 * cols // BLOCK_LAYOUTS[ggml_type].n_weights - 1
    for place in SCALES.get(ggml_type, (0,)):
        data = rows.data.copy()
        name = {GGMLType.F32: "<f4", GGMLType.BF16: "bf16"}.get(ggml_type, "<f2")
        word = BITS[fault][name].to_bytes(4 if name == "<f4" else 2, "little")
        data[last * n_bytes + place :][: len(word)] = np.frombuffer(word, np.uint8)
        path = written(tmp_path / f"{place}.gguf", ggml_type, data, (3, cols))
        with open_gguf(path) as file:
            assert check_tensors(file) == [TensorFault("bad.weight", fault, 1, last, ggml_type in SCALES)]
            with pytest.raises(NumericalError, match=rf"bad\.weight: 1 {fault} (weight|block), the first is {last}"):
                require_sound_tensors(file)
        with np.errstate(all="ignore"):
            values = np.abs(dequantize(data, ggml_type, 3, cols).reshape(last + 1, -1)[-1])
        if fault is Fault.NAN:
            assert np.isnan(values).any()
        elif fault is Fault.INFINITE:
            assert not np.isfinite(values).all()


@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=lambda t: t.name)
def test_honest_weights_have_none(ggml_type: GGMLType, tmp_path: Path) -> None:
    cols = 4 * smallest_cols(ggml_type)
    rows = random_rows(ggml_type, 8, cols)
    with open_gguf(written(tmp_path / "a.gguf", ggml_type, rows.data, (8, cols))) as file:
        assert check_tensors(file) == []


def test_fixtures_have_none() -> None:
    for path in sorted(FIXTURES.glob("*.gguf")) + sorted((FIXTURES / "llama_cpp").glob("llama-q*.gguf")):
        with open_gguf(path) as file:
            assert check_tensors(file) == [], path.name


def test_random_bytes_are_absurd(tmp_path: Path) -> None:
    """What a block that was overwritten with something else looks like."""
    for ggml_type in SCALES:
        cols = 64 * smallest_cols(ggml_type)
        n_bytes = 64 * BLOCK_LAYOUTS[ggml_type].n_bytes * 4
        data = np.random.default_rng(int(ggml_type)).integers(0, 256, n_bytes, dtype=np.uint8)
        with open_gguf(written(tmp_path / f"{ggml_type}.gguf", ggml_type, data, (4, cols))) as file:
            assert any(fault.fault is Fault.ABSURD and fault.tensor == "bad.weight" for fault in check_tensors(file))


def test_counts_go_on_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("powerinfer_py.gguf.tensor_check._CHUNK_BYTES", 40)
    data = np.ones((5, 32), np.float16)
    data[2, 7] = data[4, 31] = np.nan
    with open_gguf(written(tmp_path / "a.gguf", GGMLType.F16, data.view(np.uint8).reshape(-1), (5, 32))) as file:
        assert check_tensors(file) == [TensorFault("bad.weight", Fault.NAN, 2, 2 * 32 + 7, False)]


def test_names_are_cut_after_three(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "a.gguf", "GGUF") as writer:
        for i in range(5):
            writer.add_tensor(f"t{i}", GGMLType.F32, (2,))
        for i in range(5):
            writer.write_tensor(f"t{i}", np.array([1, np.nan], np.float32))
    with open_gguf(tmp_path / "a.gguf") as file, pytest.raises(NumericalError, match=r"t2: 1 NaN.*; and 2 more"):
        require_sound_tensors(file)


def test_faster_than_a_disk(tmp_path: Path) -> None:
    """64 MiB of F16 and of Q4_0 in processor time that a disk of 1 GB/s would take half of."""
    for ggml_type, n_row in ((GGMLType.F16, 8192), (GGMLType.Q4_0, 2304)):
        n_rows = (64 << 20) // n_row
        path = written(tmp_path / "a.gguf", ggml_type, np.zeros(n_rows * n_row, np.uint8), (n_rows, 4096))
        with open_gguf(path) as file:
            start = time.process_time()
            assert check_tensors(file) == []
            assert time.process_time() - start < 0.3
