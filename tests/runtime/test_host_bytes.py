"""What is counted before weights are loaded is what loading allocates, to the byte, for every type, mode and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_hybrid import CountedStandIn, split
from helpers_logits import FIXTURES
from helpers_models import write_opt

from powerinfer_py.config import Activation, RuntimeOptions, Sparsity
from powerinfer_py.gguf import GGUFFile, open_gguf
from powerinfer_py.gguf.types import WEIGHT_TYPES, GGMLType, row_bytes
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.kernels.reference import ReferenceKernels
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.placement import Placement
from powerinfer_py.runtime.engine import Engine
from powerinfer_py.runtime.host_bytes import host_bytes
from powerinfer_py.runtime.hybrid.layers import HostLayer
from powerinfer_py.runtime.hybrid.model import given

PWRI = [f"{name}.powerinfer" for name in ("relu-llama", "relu-llama.q4", "bamboo.q4", "relu-falcon", "relu-falcon.q4")]
TYPES = ("f16", "bf16", "q2_k", "q3_k", "q4_0", "q4_1", "q4_k", "q5_0", "q5_1", "q5_k", "q6_k", "q8_0")
DENSE = [f"llama_cpp/llama-{name}" for name in TYPES] + ["llama_cpp/llama-bias", "llama_cpp/llama-split-00001-of-00002"]
OTHERS = ["llama_cpp/arcee-tied", "llama_cpp/falcon-two-norms"]


def parts(value: Any) -> Iterator[Matrix | torch.Tensor]:
    if isinstance(value, Matrix | torch.Tensor):
        yield value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, tuple):
        for element in value:
            yield from parts(element)


def held_bytes(part: Matrix | torch.Tensor) -> int:
    """Memory of its own: not a file's map, which ends the chain of bases with something that is no array."""
    if isinstance(part, torch.Tensor):
        return part.nbytes
    base: Any = part.data
    while isinstance(base, np.ndarray):
        base = base.base
    own = part.data.nbytes if base is None else 0
    return own + (len(part.handle.to_bytes()) if part.copied else 0)


def allocated(engine: Engine) -> int:
    if engine.hybrid is None:
        on_host: list[Any] = [engine.transformer.weights]
    else:
        weights = engine.hybrid.weights
        on_host = [weights.token_embd, weights.position_embd]
        on_host += [layer.weights if isinstance(layer, HostLayer) else layer.cold for layer in weights.layers]
        on_host += [] if weights.head is None or weights.head.on_device else [weights.head]
    return sum(held_bytes(part) for part in {id(part): part for part in parts(tuple(on_host))}.values())


def counted(file: GGUFFile, engine: Engine, placement: Placement | None = None) -> int:
    graph = engine.architecture, engine.config, engine.sparsity
    return host_bytes(file, engine.kernels, engine.options, *graph, engine.layers, placement)


def require_equal(path: Path, options: RuntimeOptions, layers: range | None = None) -> int:
    with open_gguf(path) as file:
        engine = Engine(file, options, layers)
        n_bytes = counted(file, engine)
        assert n_bytes == allocated(engine)
        return n_bytes


@pytest.mark.parametrize("name", PWRI + DENSE + OTHERS)
def test_every_type_in_every_mode(name: str) -> None:
    sparsities = ("predictor", "exact", "dense") if name in PWRI else ("dense",)
    for sparsity in sparsities:
        require_equal(FIXTURES / f"{name}.gguf", RuntimeOptions(Sparsity(sparsity), threads=1))


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q5_k", "q2_k", "bf16"])
def test_transposed_down_projections(name: str) -> None:
    """They become float16 where blocks lie across neurons."""
    options = RuntimeOptions(Sparsity.EXACT, threads=1, activation=Activation.RELU)
    assert require_equal(FIXTURES / "llama_cpp" / f"llama-{name}.gguf", options) > 0


def test_files_kept_as_they_are(tmp_path: Path) -> None:
    opt = write_opt(tmp_path / "opt.gguf", predictors=False, neurons_as_rows=False)
    require_equal(opt, RuntimeOptions(Sparsity.EXACT, threads=1))
    require_equal(opt, RuntimeOptions(Sparsity.EXACT, threads=1, use_mmap=False))


def test_a_range_of_layers_takes_its_own_alone() -> None:
    path = FIXTURES / "relu-llama.q4.powerinfer.gguf"
    whole = require_equal(path, RuntimeOptions(threads=1))
    first = require_equal(path, RuntimeOptions(threads=1), range(1))
    assert 0 < first < whole


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ["bamboo", "relu-falcon.q4", "opt", "opt.gguf", "opt.turned"])
def test_what_a_split_leaves_to_the_host(tmp_path: Path, name: str, share: float, head: bool) -> None:
    path = FIXTURES / f"{name}.powerinfer.gguf"
    if name.startswith("opt"):
        is_dense = name != "opt"
        path = write_opt(tmp_path / "opt.gguf", predictors=not is_dense, neurons_as_rows=not is_dense)
    sparsity = Sparsity.EXACT if name == "opt.turned" else Sparsity.AUTO
    options = RuntimeOptions(sparsity, threads=1, context_length=32, vram_budget=1.0)
    with open_gguf(path) as file:
        config = read_config(file, options)
        placement = split(config, share, blocks=[index != 1 for index in range(config.n_layer)], head=head)
        engine = Engine(file, options, device=CountedStandIn(), choose=given(placement))
        assert counted(file, engine, placement) == allocated(engine)
        engine.close()


@pytest.mark.parametrize("ggml_type", WEIGHT_TYPES, ids=lambda t: t.name)
def test_a_matrix_takes_what_is_said(ggml_type: GGMLType) -> None:
    kernels = NativeKernels(1)
    rows, cols = 3, 512
    data = np.zeros(rows * row_bytes(ggml_type, cols), np.uint8)
    for pack, copy in ((False, False), (False, True), (True, False), (True, True)):
        matrix = kernels.matrix("m", ggml_type, rows, cols, data, pack=pack, copy=copy)
        n_bytes = kernels.copied_bytes(ggml_type, rows, cols, pack=pack, copy=copy)
        assert n_bytes == (len(matrix.handle.to_bytes()) if matrix.copied else 0)
        assert ReferenceKernels().copied_bytes(ggml_type, rows, cols, pack=pack, copy=copy) == 0


@pytest.mark.parametrize(("name", "growth"), [("q4_k", 20 / 18), ("q5_k", 24 / 22)])
def test_packed_superblocks_are_longer(name: str, growth: float) -> None:
    ggml_type = GGMLType[name.upper()]
    assert NativeKernels(1).copied_bytes(ggml_type, 2, 256, pack=True) / row_bytes(ggml_type, 512) == growth
