"""gpuidx files: PowerInfer's own byte for byte, ours with more keys, and everything that is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from powerinfer_py.gguf import GGMLType, GGUFWriter, ValueType, keys, open_gguf
from powerinfer_py.placement.gpuidx import (
    NO_STATISTICS,
    GpuIndex,
    GpuIndexError,
    SolvedFor,
    load_gpu_index,
    write_gpu_index,
)

SOLVED = SolvedFor(
    model_fingerprint="ab" * 32,
    activation_hash="cd" * 32,
    budget_bytes=12345,
    rates={"gpu_bytes_per_s": 5e11, "source": "given"},
    gap=0.0003,
    blocks_on_gpu=(True, False),
    head_on_gpu=True,
)
HOT = (np.array([0, 3, 4], np.int32), np.zeros(0, np.int32))
INDEX = GpuIndex(HOT, n_ff=6, vram_capacity=777, solved_for=SOLVED)


@pytest.mark.parametrize(("name", "n_layer"), [("relu-llama", 12), ("bamboo", 2)])
def test_powerinfers_files_are_read_and_written_byte_for_byte(
    fixtures: Path, tmp_path: Path, name: str, n_layer: int
) -> None:
    source = fixtures / f"{name}.reference.gpuidx"
    index = load_gpu_index(source, n_layer, 1024)
    assert index.solved_for is None
    assert (len(index.hot), index.n_ff, index.vram_capacity) == (n_layer, 1024, 123456789)
    write_gpu_index(tmp_path / "copy.gpuidx", index)
    assert (tmp_path / "copy.gpuidx").read_bytes() == source.read_bytes()


def test_our_keys_follow_theirs_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.gpuidx"
    write_gpu_index(path, INDEX)
    index = load_gpu_index(path, 2, 6)
    assert index.solved_for == SOLVED
    assert (index.vram_capacity, index.n_ff) == (777, 6)
    assert [hot.tolist() for hot in index.hot] == [[0, 3, 4], []]
    with open_gguf(path) as file:
        assert file.is_powerinfer
        entries = [(entry.key, entry.type) for entry in file.entries.values()]
        assert list(file.tensors) == ["blk.0.gpu_idx", "blk.0.gpu_bucket", "blk.1.gpu_idx", "blk.1.gpu_bucket"]
        assert file.tensor_data("blk.0.gpu_idx").view("<i4").tolist() == [1, 0, 0, 1, 1, 0]
    assert entries[:3] == [
        ("general.architecture", ValueType.STRING),
        ("generic.gpu_index.block_count", ValueType.UINT32),
        ("split.vram_capacity", ValueType.UINT64),
    ]
    assert all(key.startswith("powerinfer.gpuidx.") for key, _ in entries[3:])


def test_without_our_keys_only_the_type_id_18_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.gpuidx"
    write_gpu_index(path, replace(INDEX, solved_for=None))
    data = path.read_bytes()
    for name in (b"blk.0.gpu_idx", b"blk.1.gpu_bucket"):
        after = data.index(name) + len(name)
        assert int.from_bytes(data[after + 12 : after + 16], "little") == 18


@dataclass
class RawIndex:
    """A gpuidx file with nothing checked."""

    magic: str = "PWRI"
    entries: dict[str, tuple[Any, ValueType]] = field(
        default_factory=lambda: {
            keys.ARCHITECTURE: (keys.GPU_INDEX_ARCHITECTURE, ValueType.STRING),
            keys.GPU_INDEX_BLOCK_COUNT: (2, ValueType.UINT32),
            keys.VRAM_CAPACITY: (777, ValueType.UINT64),
            keys.GPU_INDEX_FINGERPRINT: ("ab" * 32, ValueType.STRING),
            keys.GPU_INDEX_ACTIVATION_HASH: (NO_STATISTICS, ValueType.STRING),
            keys.GPU_INDEX_BUDGET_BYTES: (1, ValueType.UINT64),
            keys.GPU_INDEX_RATES: ("{}", ValueType.STRING),
            keys.GPU_INDEX_GAP: (0.0, ValueType.FLOAT64),
            keys.GPU_INDEX_BLOCKS: ("11", ValueType.STRING),
            keys.GPU_INDEX_HEAD: (False, ValueType.BOOL),
        }
    )
    tensors: dict[str, Any] = field(
        default_factory=lambda: {
            "blk.0.gpu_idx": np.array([1, 0, 1, 1], "<i4"),
            "blk.0.gpu_bucket": np.array([0, 2, 3], "<i4"),
            "blk.1.gpu_idx": np.array([0, 1, 0, 0], "<i4"),
            "blk.1.gpu_bucket": np.array([1], "<i4"),
        }
    )

    def write(self, path: Path) -> Path:
        with GGUFWriter(path, self.magic) as writer:
            for key, (value, value_type) in self.entries.items():
                writer.add(key, value, value_type)
            for name, array in self.tensors.items():
                writer.add_tensor(name, GGMLType.I32 if array.dtype == "<i4" else GGMLType.F32, array.shape)
            for name, array in self.tensors.items():
                writer.write_tensor(name, array)
        return path


def test_the_unspoilt_file_is_read(tmp_path: Path) -> None:
    assert load_gpu_index(RawIndex().write(tmp_path / "a"), 2, 4).hot[0].tolist() == [0, 2, 3]


def entry(key: str, value: Any, value_type: ValueType = ValueType.STRING) -> Callable[[RawIndex], None]:
    return lambda raw: raw.entries.update({key: (value, value_type)})


def without(key: str) -> Callable[[RawIndex], None]:
    return lambda raw: raw.entries.__delitem__(key)


def tensor(name: str, values: list[Any], dtype: str = "<i4") -> Callable[[RawIndex], None]:
    return lambda raw: raw.tensors.update({name: np.array(values, dtype)})


def drop(name: str) -> Callable[[RawIndex], None]:
    return lambda raw: raw.tensors.__delitem__(name)


def drop_last_layer(raw: RawIndex) -> None:
    del raw.tensors["blk.1.gpu_idx"], raw.tensors["blk.1.gpu_bucket"]


def reorder(raw: RawIndex) -> None:
    raw.tensors = dict(sorted(raw.tensors.items()))


FAULTS: dict[str, tuple[Callable[[RawIndex], None], str]] = {
    "id out of range": (tensor("blk.0.gpu_bucket", [0, 2, 4]), "ids outside 0 to 3"),
    "negative id": (tensor("blk.0.gpu_bucket", [-1, 2, 3]), "ids outside 0 to 3"),
    "repeated id": (tensor("blk.0.gpu_bucket", [0, 2, 2]), "not strictly ascending"),
    "unsorted ids": (tensor("blk.0.gpu_bucket", [2, 0, 3]), "not strictly ascending"),
    "a flag of 2": (tensor("blk.0.gpu_idx", [1, 0, 2, 1]), "other than 0 and 1"),
    "a flag of -1": (tensor("blk.0.gpu_idx", [1, 0, -1, 1]), "other than 0 and 1"),
    "flags without bucket": (tensor("blk.0.gpu_idx", [1, 1, 1, 1]), "different neurons"),
    "bucket without flags": (tensor("blk.1.gpu_idx", [0, 0, 0, 0]), "layer 1: gpu_idx and gpu_bucket name different"),
    "floats": (tensor("blk.0.gpu_bucket", [0.0, 2.0, 3.0], "<f4"), "is F32"),
    "two dimensions": (tensor("blk.0.gpu_idx", [[1, 0, 1, 1]]), r"is I32 \(1, 4\)"),
    "no bucket": (drop("blk.1.gpu_bucket"), "gpu_bucket is missing"),
    "no flags": (drop("blk.1.gpu_idx"), "gpu_idx is missing"),
    "a missing layer": (
        lambda raw: (drop("blk.1.gpu_idx")(raw), drop("blk.1.gpu_bucket")(raw)),
        "is 2, found 1 layers",
    ),  # type: ignore[dict-item]
    "another FFN length in one layer": (tensor("blk.1.gpu_idx", [0, 1, 0]), "3 neurons a layer, this one has 4"),
    "a surplus tensor": (tensor("blk.7.gpu_idx", [1]), "are not gpu_idx and gpu_bucket of each layer in order"),
    "another order": (reorder, "of each layer in order"),
    "another architecture": (entry(keys.ARCHITECTURE, "llama"), "is no GPU index"),
    "another magic": (lambda raw: setattr(raw, "magic", "GGUF"), "is no GPU index"),
    "no block count": (without(keys.GPU_INDEX_BLOCK_COUNT), "block_count is missing"),
    "no capacity": (without(keys.VRAM_CAPACITY), "vram_capacity is missing"),
    "a negative capacity": (entry(keys.VRAM_CAPACITY, -1, ValueType.INT64), "vram_capacity is -1"),
    "a capacity in words": (entry(keys.VRAM_CAPACITY, "all"), "vram_capacity"),
    "half of our keys": (without(keys.GPU_INDEX_RATES), "rates is missing"),
    "no fingerprint": (entry(keys.GPU_INDEX_FINGERPRINT, "\x1b[31m"), "fingerprints are none"),
    "no hash": (entry(keys.GPU_INDEX_ACTIVATION_HASH, "AB"), "fingerprints are none"),
    "rates that are no JSON": (entry(keys.GPU_INDEX_RATES, "{"), "no JSON object"),
    "rates that are no object": (entry(keys.GPU_INDEX_RATES, "[]"), "no JSON object"),
    "a gap of NaN": (entry(keys.GPU_INDEX_GAP, float("nan"), ValueType.FLOAT64), "gap is nan"),
    "too few blocks": (entry(keys.GPU_INDEX_BLOCKS, "1"), "no flag a layer"),
    "neurons without their block": (entry(keys.GPU_INDEX_BLOCKS, "10"), "whose block is not"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_with_one_line(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    raw = RawIndex()
    spoil(raw)
    with pytest.raises(GpuIndexError, match=message) as caught:
        load_gpu_index(raw.write(tmp_path / "a"), 2, 4)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(("n_layer", "n_ff", "message"), [(3, 4, "2 layers, this one has 3"), (2, 8, "4 neurons")])
def test_other_models_are_refused(tmp_path: Path, n_layer: int, n_ff: int, message: str) -> None:
    with pytest.raises(GpuIndexError, match=message):
        load_gpu_index(RawIndex().write(tmp_path / "a"), n_layer, n_ff)


def cuts(data: bytes) -> Iterator[int]:
    yield from range(0, len(data), 7)
    yield len(data) - 1


def test_truncation_anywhere_is_refused(tmp_path: Path) -> None:
    data = RawIndex().write(tmp_path / "a").read_bytes()
    path = tmp_path / "cut"
    for length in cuts(data):
        path.write_bytes(data[:length])
        with pytest.raises(GpuIndexError):
            load_gpu_index(path)


def test_a_model_and_a_missing_file_are_refused(fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(GpuIndexError, match="is no GPU index"):
        load_gpu_index(fixtures / "bamboo.powerinfer.gguf")
    with pytest.raises(GpuIndexError) as caught:
        load_gpu_index(tmp_path / "no such file")
    assert len(re.findall("no such file", str(caught.value))) <= 2
