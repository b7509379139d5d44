"""`.pt` and `.bin` files, predictors and activation folders: forbidden pickles, tensors that lie, bombs, misfits."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers_checkpoints import Malice, random_predictors
from hostile.case import HostileCase, with_bytes

N_LAYER, N_EMBD, N_FF, RANK = 2, 64, 1024, 8
FC1, FC2 = "fc1.weight", "fc2.weight"


def saved(value: object) -> bytes:
    """As torch.save writes it; a pickle that runs code needs Python's own pickler."""
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_module=pickle)
    return buffer.getvalue()


def good_state() -> dict[str, torch.Tensor]:
    return {FC1: torch.ones(RANK, N_EMBD).half(), FC2: torch.ones(N_FF, RANK).half()}


def predictor(name: str, change: Callable[[dict[str, Any]], object], error: str = "FileFormatError") -> HostileCase:
    """A folder whose second layer is changed."""

    def build(folder: Path) -> Path:
        random_predictors(folder / "predictors", N_LAYER, N_EMBD, N_FF, RANK)
        content = change(good_state())
        data = content if isinstance(content, bytes) else saved(content)
        (folder / "predictors" / "model_1.pt").write_bytes(data)
        return folder / "predictors"

    return HostileCase("P .pt files", f"predictor: {name}", "predictors", build, error)


def sparse_out_of_range() -> torch.Tensor:
    """Indices beyond the shape, which `to_dense` would write to."""
    indices = torch.tensor([[10**9], [10**9]])
    return torch.sparse_coo_tensor(indices, torch.tensor([1.0]), (RANK, N_EMBD), check_invariants=False)


def nested() -> torch.Tensor:
    """Calls itself strided and contiguous, and has no sizes."""
    return torch.nested.nested_tensor([torch.ones(N_FF)])


def inflating() -> bytes:
    """A zip of a megabyte that inflates to one of 256 MiB."""
    source, target = io.BytesIO(saved({FC1: torch.zeros(1 << 26)})), io.BytesIO()
    with zipfile.ZipFile(source) as honest, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for entry in honest.infolist():
            out.writestr(entry.filename, honest.read(entry))
    return target.getvalue()


def replaced_pickle(find: bytes, by: bytes, value: object) -> bytes:
    """A saved file whose pickle says something else."""
    source, target = io.BytesIO(saved(value)), io.BytesIO()
    with zipfile.ZipFile(source) as honest, zipfile.ZipFile(target, "w") as out:
        for entry in honest.infolist():
            data = honest.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert find in data
                data = data.replace(find, by)
            out.writestr(entry.filename, data)
    return target.getvalue()


def bad_index(state: dict[str, Any]) -> dict[str, Any]:
    return state | {FC1: sparse_out_of_range()}


PREDICTORS = [
    predictor("code in the pickle", lambda s: s | {"x": Malice(Path("executed"))}),
    predictor("code in a bare pickle", lambda _: pickle.dumps(Malice(Path("executed")))),
    predictor("sparse tensor with indices out of range", bad_index),
    predictor("sparse CSR tensor", lambda s: s | {FC1: torch.eye(RANK).to_sparse_csr()}),
    predictor("stride-0 tensor of 2^40 elements", lambda s: s | {FC1: torch.zeros(1).expand(1 << 40)}),
    predictor("stride-0 matrix", lambda s: s | {FC1: torch.zeros(1).expand(RANK, N_EMBD)}),
    predictor("transposed view", lambda s: s | {FC1: torch.zeros(N_EMBD, RANK).t()}),
    predictor("meta tensor", lambda s: s | {FC1: torch.empty(RANK, N_EMBD, device="meta")}),
    predictor("quantised tensor", lambda s: s | {FC1: torch.quantize_per_tensor(torch.ones(8, 64), 1, 0, torch.qint8)}),
    predictor("nested tensor", lambda s: s | {FC1: nested()}),
    predictor("zip that inflates", lambda _: inflating()),
    predictor("shape that the storage lacks", lambda s: replaced_pickle(b"K\x08K@\x86", b"M\xff\x7fK@\x86", s)),
    predictor("empty file", lambda _: b""),
    predictor("half a file", lambda s: saved(s)[:900]),
    predictor("text", lambda _: b"not a model"),
    predictor("a list", lambda s: [*s.values()]),
    predictor("a lone tensor", lambda s: s[FC1]),
    predictor("nothing", lambda _: None),
    predictor("numbers for names", lambda s: {1: s[FC1]}),
    predictor("a string for a tensor", lambda s: s | {FC1: "x"}),
    predictor("fc2 missing", lambda s: {FC1: s[FC1]}),
    predictor("NaN", lambda s: s | {FC1: torch.full((RANK, N_EMBD), math.nan).half()}),
    predictor("infinity", lambda s: s | {FC2: torch.full((N_FF, RANK), math.inf).half()}),
    predictor("integers", lambda s: s | {FC1: torch.ones(RANK, N_EMBD, dtype=torch.int32)}),
    predictor("complex numbers", lambda s: s | {FC1: torch.ones(RANK, N_EMBD, dtype=torch.complex64)}),
    predictor("rank 0", lambda _: {FC1: torch.ones(0, N_EMBD), FC2: torch.ones(N_FF, 0)}, "ModelError"),
    predictor("another width", lambda s: s | {FC1: torch.ones(RANK, 32).half()}, "ModelError"),
    predictor("another FFN length", lambda s: s | {FC2: torch.ones(512, RANK).half()}, "ModelError"),
    predictor("ranks that differ", lambda s: s | {FC2: torch.ones(N_FF, 4).half()}, "ModelError"),
    predictor("one dimension", lambda s: s | {FC1: torch.ones(RANK * N_EMBD).half()}),
]


def activations(
    name: str, layers: Callable[[], dict[int, object]], error: str | None, folder_name: str = "activation"
) -> HostileCase:
    """A folder of `activation_{i}.pt` for a model of two layers."""

    def build(folder: Path) -> Path:
        target = folder / folder_name
        target.mkdir()
        for layer, content in layers().items():
            data = content if isinstance(content, bytes) else saved(content)
            (target / f"activation_{layer}.pt").write_bytes(data)
        return target

    clause = "H Activations"
    return HostileCase(clause, name, "activations", build, error)


def counts() -> torch.Tensor:
    return torch.arange(N_FF)


ACTIVATIONS = [
    activations("no file at all", dict, "FileFormatError"),
    activations("a layer missing", lambda: {1: counts()}, "ModelError"),
    activations("a layer too many", lambda: {0: counts(), 1: counts(), 2: counts()}, "ModelError"),
    activations("wrong length", lambda: {0: counts(), 1: counts()[1:].clone()}, "ModelError"),
    activations("two dimensions", lambda: {0: counts(), 1: counts().reshape(1, -1)}, "ModelError"),
    activations("NaN", lambda: {0: counts(), 1: torch.full((N_FF,), math.nan)}, "FileFormatError"),
    activations("infinity", lambda: {0: counts(), 1: torch.full((N_FF,), math.inf)}, "FileFormatError"),
    activations("negative", lambda: {0: counts(), 1: counts() - 1}, "FileFormatError"),
    activations("complex", lambda: {0: counts(), 1: counts() * 1j}, "ModelError"),
    activations("a dictionary", lambda: {0: counts(), 1: {"a": counts()}}, "FileFormatError"),
    activations("stride 0", lambda: {0: counts(), 1: torch.ones(1).expand(N_FF)}, "FileFormatError"),
    activations("nested tensor", lambda: {0: counts(), 1: nested()}, "FileFormatError"),
    activations("truncated", lambda: {0: counts(), 1: saved(counts())[:1000]}, "FileFormatError"),
    activations("all zero", lambda: dict.fromkeys(range(2), torch.zeros(N_FF)), None),
    activations("counts", lambda: {0: counts(), 1: counts()}, None),
    activations("counts that want a gradient", lambda: {0: counts(), 1: torch.ones(N_FF, requires_grad=True)}, None),
    activations("a path of odd characters", lambda: {0: counts(), 1: counts()}, None, "a b'\"; rm\n\t$(x)"),
]


def huge_memo() -> bytes:
    """A pickle that makes the unpickler written in C ask for 64 GiB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}r\xff\xff\xff\xff.")
    return buffer.getvalue()


def shard(name: str, data: Callable[[], bytes], error: str | None = "FileFormatError") -> HostileCase:
    return HostileCase("P .pt files", f"shard: {name}", "torch", with_bytes(data, "pytorch_model.bin"), error)


SHARDS = [
    shard("code in the pickle", lambda: saved({"x": Malice(Path("executed"))})),
    shard("sparse tensor", lambda: saved({"x": sparse_out_of_range()})),
    shard("stride-0 tensor of 2^40 elements", lambda: saved({"x": torch.zeros(1).expand(1 << 40)})),
    shard("zip that inflates", inflating),
    shard(
        "shape that the storage lacks", lambda: replaced_pickle(b"K\x08\x85", b"M\xff\x7f\x85", {"x": torch.ones(8)})
    ),
    shard("negative shape", lambda: replaced_pickle(b"K\x08\x85", b"J\xff\xff\xff\xff\x85", {"x": torch.ones(8)})),
    shard("a list", lambda: saved([torch.zeros(2)])),
    shard("truncated", lambda: saved({"x": torch.ones(8)})[:-30]),
    shard("an empty memo of 2^32 places", huge_memo, None),
    shard("plain tensors", lambda: saved({"x": torch.ones(8)}), None),
]
# Readers that trust these die of a segmentation fault or of memory.
_DEADLY = ("sparse", "stride-0", "inflates", "memo", "storage lacks")
CASES = [
    HostileCase(c.clause, c.name, c.reader, c.build, c.error, c.match, may_die=any(word in c.name for word in _DEADLY))
    for c in (*PREDICTORS, *ACTIVATIONS, *SHARDS)
]
