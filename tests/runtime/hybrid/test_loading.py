"""What each side is given of a model: its own neurons alone, in its own types, and no more host memory than that."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_hybrid import CountedStandIn, bound_of, run_sequences, sequences_of, split
from helpers_logits import TOKENS, nmse
from helpers_models import edited_copy

from powerinfer_py import LLM
from powerinfer_py.config import RuntimeOptions, Sparsity
from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf import BLOCK_LAYOUTS, GGMLType, open_gguf
from powerinfer_py.gguf.types import row_bytes
from powerinfer_py.kernels.matrix import Matrix
from powerinfer_py.placement.budget import GIB, BudgetError
from powerinfer_py.placement.placement import Placement, everything_on_cpu
from powerinfer_py.runtime import engine as engine_module
from powerinfer_py.runtime.engine import Engine
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device import Held
from powerinfer_py.runtime.hybrid.layers import DeviceLayer
from powerinfer_py.runtime.hybrid.model import HybridModel, given
from powerinfer_py.runtime.hybrid.neuron_order import neuron_order
from powerinfer_py.runtime.hybrid.part_source import chosen_columns, chosen_rows

_NEURONS = ("ffn_gate.weight", "ffn_up.weight", "ffn_down_t.weight")


def poisoned(source: Path, target: Path, neurons: Mapping[int, np.ndarray]) -> Path:
    """A copy with NaN in the rows of these neurons of each layer: in every float16 weight or scale."""
    with open_gguf(source) as file:
        infos = dict(file.tensors)

    def edit(name: str, data: np.ndarray) -> np.ndarray:
        layer, _, kind = name.removeprefix("blk.").partition(".")
        if kind in _NEURONS:
            info = infos[name]
            layout = BLOCK_LAYOUTS[info.ggml_type]
            wide = layout.n_bytes == 4
            nan = np.frombuffer((np.float32 if wide else np.float16)(np.nan).tobytes(), np.uint8)
            table = data.reshape(info.shape[0], row_bytes(info.ggml_type, info.shape[1]) // layout.n_bytes, -1)
            table[neurons[int(layer)], :, : len(nan)] = nan
        elif kind in ("ffn_up.bias", "ffn_gate.bias"):
            data.view("<f4")[neurons[int(layer)]] = np.nan
        return data

    return edited_copy(source, target, edit)


@pytest.mark.parametrize("sparsity", ["predictor", "exact", "dense"])
@pytest.mark.parametrize("name", ["relu-llama", "bamboo.q4", "relu-falcon", "opt", "arcee"])
def test_neither_side_reads_the_others_neurons(
    models: dict[str, Path], name: str, sparsity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU loads a file with NaN in the hot rows, the device one with NaN in the cold rows."""
    options = RuntimeOptions(Sparsity(sparsity), threads=2, context_length=32, max_batch=3, vram_budget=1.0)
    with open_gguf(models[name]) as file:
        alone = Engine(file, RuntimeOptions(Sparsity(sparsity), threads=2, context_length=32, max_batch=3))
        sequences = sequences_of(3, alone.config.n_vocab)
        expected = run_sequences(alone, sequences)
    placement = split(alone.config, 0.4)
    n_ff = alone.config.n_ff
    hot = {i: placed.hot.astype(np.int64) for i, placed in enumerate(placement.layers)}
    cold = {i: np.setdiff1d(np.arange(n_ff), ids) for i, ids in hot.items()}
    of_host = poisoned(models[name], tmp_path / "host.gguf", hot)
    of_device = poisoned(models[name], tmp_path / "device.gguf", cold)

    class TwoFiles(HybridModel):
        def __init__(self, *args: object) -> None:
            *before, host, _, kernels = args
            with open_gguf(of_device) as other:
                super().__init__(*before, host, FileWeights(other, kernels, options), kernels)

    monkeypatch.setattr(engine_module, "HybridModel", TwoFiles)
    # What one of the files was asked for is no longer all that the model has.
    monkeypatch.setattr(FileWeights, "refuse_unused", lambda *_args: None)
    device = CountedStandIn()
    with open_gguf(of_host) as file:
        engine = Engine(file, options, device=device, choose=given(placement))
    actual = run_sequences(engine, sequences)
    engine.close()
    assert np.isfinite(actual).all()
    assert nmse(actual, expected) < bound_of(name, sparsity)


def test_reserved_bytes_are_the_bytes_that_are_held(models: dict[str, Path]) -> None:
    """For every model and share: the formulas of the ledger are what loading takes, to the byte."""
    for name, path in models.items():
        if name.startswith("silu"):
            continue
        for share in (0.0, 0.37, 1.0):
            device = CountedStandIn(context_bytes=12345)
            choose = lambda sizes, _fixed, _left, share=share: split(sizes.config, share)  # noqa: E731
            with LLM(path, threads=1, vram_budget=1.0, context_length=32, device=device, choose=choose) as llm:
                vram = llm.stats.vram
                assert vram["used_bytes"] == device.live_bytes + 12345
                names = vram["names"]
                assert all(line["used_bytes"] == line["reserved_bytes"] for line in names.values())
                # Without a split layer nothing comes up.
                assert ("staging" in names) == (share < 1.0)
                llm.logits([token % llm.config.n_vocab for token in TOKENS[:3]])
                assert vram["used_bytes"] == device.live_bytes + 12345


def test_host_memory_is_what_is_not_on_the_device(models: dict[str, Path]) -> None:
    """Cold rows are copied once, not kept beside a copy of the kernels; hot ones not at all."""
    for name in ("relu-falcon", "relu-falcon.q4"):
        with open_gguf(models[name]) as file:
            ffn_bytes = sum(info.n_bytes for key, info in file.tensors.items() if key.endswith(_NEURONS))
        for share in (0.25, 0.75):
            choose = lambda sizes, _fixed, _left, share=share: split(sizes.config, share)  # noqa: E731
            with LLM(models[name], threads=1, vram_budget=1.0, device=CountedStandIn(), choose=choose) as llm:
                assert llm.engine.hybrid is not None
                held = 0
                for layer in llm.engine.hybrid.weights.layers:
                    assert isinstance(layer, DeviceLayer) and layer.cold is not None
                    weights = layer.cold.weights
                    for matrix in (weights.up, weights.down):
                        assert matrix.rows == layer.order.cold.size
                        held += matrix.rows * matrix.row_bytes
                        assert matrix.data.base is None or matrix.data.base.nbytes <= matrix.rows * matrix.row_bytes
                        assert matrix.data.size == (0 if matrix.copied else matrix.rows * matrix.row_bytes)
            assert held <= 1.1 * (1 - share) * ffn_bytes


def cold_matrices(llm: LLM) -> list[Matrix]:
    assert llm.engine.hybrid is not None
    found = []
    for layer in llm.engine.hybrid.weights.layers:
        assert isinstance(layer, DeviceLayer) and layer.cold is not None
        weights = layer.cold.weights
        found += [matrix for matrix in (weights.up, weights.gate, weights.down) if matrix is not None]
    return found


def is_mapped(data: np.ndarray) -> bool:
    """A chain of views of memory that numpy has not allocated."""
    base: object = data
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None


@pytest.mark.parametrize("name", ["bamboo", "bamboo.q4", "opt.gguf"])
def test_without_hot_neurons_cold_rows_are_kept_as_the_cpu_keeps_them(models: dict[str, Path], name: str) -> None:
    """Nothing is chosen of the file's rows, and yet they do not stay in its pages unless the options want it."""
    choose = lambda sizes, _fixed, _left: split(sizes.config, 0.0)  # noqa: E731
    kept: dict[str, list[tuple[bool, bool, bool]]] = {}
    logits = []
    for what, options in {"copied": {}, "read": {"repack": False, "use_mmap": False}, "map": {"repack": False}}.items():
        options |= {"threads": 1, "vram_budget": 1.0}
        with LLM(models[name], device=CountedStandIn(), choose=choose, **options) as llm:
            matrices = cold_matrices(llm)
            kept[what] = [(matrix.packed, matrix.copied, is_mapped(matrix.data)) for matrix in matrices]
            logits.append(llm.logits([1, 2, 3]))
    packed = name == "bamboo.q4"
    for what, up, down in (
        ("copied", (packed, True, True), (False, True, True)),
        ("read", (False, False, False), (False, False, False)),
        ("map", (False, False, True), (False, False, True)),
    ):
        assert set(kept[what]) == {up, down}
    assert np.array_equal(logits[1], logits[2])


def test_without_hot_neurons_the_files_pages_are_locked(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[np.ndarray] = []
    monkeypatch.setattr("powerinfer_py.runtime.host_weights.lock_in_memory", locked.append)
    choose = lambda sizes, _fixed, _left: split(sizes.config, 0.0)  # noqa: E731
    options = {"threads": 1, "vram_budget": 1.0, "use_mlock": True}
    with LLM(models["bamboo"], device=CountedStandIn(), choose=choose, **options) as llm:
        addresses = {data.ctypes.data for data in locked}
        assert all(matrix.data.ctypes.data in addresses for matrix in cold_matrices(llm))


def test_types_without_device_kernels_become_float16(models: dict[str, Path]) -> None:
    """K-quants: the ledger knows, and the device holds what the blocks mean."""
    choose = lambda sizes, _fixed, _left: split(sizes.config, 1.0)  # noqa: E731
    with LLM(models["silu.k"], threads=1, vram_budget=1.0, device=CountedStandIn(), choose=choose) as llm:
        assert llm.engine.hybrid is not None
        layer = llm.engine.hybrid.weights.layers[0]
        assert isinstance(layer, DeviceLayer)
        assert layer.hot.weights.up.type is GGMLType.F16
        assert llm.stats.vram["used_bytes"] <= llm.stats.vram["reserved_bytes"]


def test_an_order_leads_back_to_the_file() -> None:
    order = neuron_order(np.array([1, 4, 5], np.int32), 7)
    assert order.placed.tolist() == [1, 4, 5, 0, 2, 3, 6]
    mask = torch.tensor([[True, False, True, False, False, True, False]])
    assert order.in_file_order(mask).tolist() == [[False, True, False, True, False, True, False]]
    with pytest.raises(ValueError, match="neuron 7"):
        neuron_order(np.array([7], np.int32), 7)


def test_rows_and_columns_are_chosen_as_bytes() -> None:
    rows = np.arange(24, dtype=np.uint8)
    assert chosen_rows(rows, np.array([2, 0]), 4).tolist() == [*range(12, 18), *range(6)]
    assert chosen_rows(rows, np.arange(4), 4) is rows
    halves = np.arange(2 * 6, dtype="<f2")
    columns = chosen_columns(GGMLType.F16, halves.view(np.uint8), np.array([5, 1]), 2, 6)
    assert columns.view("<f2").tolist() == [5, 1, 11, 7]
    blocks = np.arange(2 * 3 * 34, dtype=np.uint64).astype(np.uint8)
    second = chosen_columns(GGMLType.Q8_0, blocks, np.arange(32, 64), 2, 96)
    assert second.tolist() == [*blocks[34:68], *blocks[136:170]]
    for wrong in (np.arange(31), np.arange(16, 48), np.r_[0:16, 32:48]):
        with pytest.raises(ValueError, match="blocks of 32"):
            chosen_columns(GGMLType.Q8_0, blocks, wrong, 2, 96)


def test_the_warm_up_leaves_nothing_behind(models: dict[str, Path]) -> None:
    """It runs every shape on memory that is free again before the model is loaded, whatever the architecture."""
    for name in ("relu-llama.q4", "relu-falcon", "opt", "silu"):
        device = CountedStandIn()
        device._warms_up = True
        seen: list[int] = []

        def choose(
            sizes: object, _fixed: object, _left: int, seen: list[int] = seen, device: CountedStandIn = device
        ) -> Placement:
            seen.append(device.live_bytes)
            return split(sizes.config, 0.0)  # type: ignore[attr-defined]

        with LLM(models[name], threads=1, vram_budget=1.0, context_length=64, device=device, choose=choose) as llm:
            assert np.isfinite(llm.logits(TOKENS[:3] if name != "silu" else [1, 2, 3])).all()
        assert seen == [0]


@pytest.mark.parametrize("name", ["relu-llama.q4", "bamboo", "silu"])
def test_the_warm_up_keeps_to_the_budget(models: dict[str, Path], name: str) -> None:
    """From the least budget on, nothing that is allocated at any moment of loading is beyond it."""
    options = {"threads": 1, "context_length": 64, "max_batch": 2}
    with pytest.raises(BudgetError) as refused:
        LLM(models[name], vram_budget=1e-6, device=CountedStandIn(), **options)
    found = re.search(r"\((\d+) bytes\), and 0 uses", str(refused.value))
    assert found is not None
    least = int(found[1])
    for budget in (least, least * 5 // 4, least * 2, least * 20):
        device = CountedStandIn()
        device._warms_up = True
        choose = lambda sizes, _fixed, _left: everything_on_cpu(sizes.config.n_layer)  # noqa: E731
        with LLM(models[name], vram_budget=budget / GIB, device=device, choose=choose, **options):
            pass
        assert 0 < device.peak_bytes <= budget


class Loading(CountedStandIn):
    """A stand-in whose context grows by `modules` bytes when kernels are loaded, which it does not know beforehand."""

    def __init__(self, modules: int, growth: int) -> None:
        super().__init__(context_bytes=500_000)
        self._modules, self._growth = modules, growth

    def context_bytes(self, warm_up: Callable[[Held], None]) -> int:
        if self._modules:
            warm_up(Held(self._context_bytes, self._growth))
            self._context_bytes += self._modules
            self._modules = 0
        return self._context_bytes


@pytest.mark.parametrize("modules", [1, 100_000, 200_000, 350_000])
def test_the_minimum_that_is_named_is_enough(models: dict[str, Path], modules: int) -> None:
    """From any budget, the first one that is named; where modules are larger than expected, the second."""
    options = {"threads": 1, "context_length": 64, "max_batch": 2}
    choose = lambda sizes, _fixed, _left: everything_on_cpu(sizes.config.n_layer)  # noqa: E731
    budget, n_refused = 1000, 0
    while n_refused < 4:
        device = Loading(modules, 200_000)
        try:
            with LLM(models["bamboo"], vram_budget=budget / GIB, device=device, choose=choose, **options):
                break
        except BudgetError as error:
            n_refused += 1
            found = re.search(r"minimum is ([0-9.]+) GiB \((\d+) bytes\)", str(error))
            assert found is not None
            # The figure in GiB, given as a budget, is no less.
            assert budget < int(found[2]) <= int(float(found[1]) * GIB)
            budget = int(found[2])
    assert n_refused == (1 if modules <= 200_000 else 2)


def test_cold_rows_are_locked_where_that_is_asked(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[int] = []
    monkeypatch.setattr("powerinfer_py.runtime.host_weights.lock_in_memory", lambda data: locked.append(data.nbytes))
    choose = lambda sizes, _fixed, _left: split(sizes.config, 0.5)  # noqa: E731
    options = {"threads": 1, "vram_budget": 1.0, "use_mlock": True}
    with LLM(models["bamboo"], device=CountedStandIn(), choose=choose, **options) as llm:
        config = llm.config
        # Half of three arrays of every layer, and the embedding.
        cold = config.n_layer * 3 * (config.n_ff // 2) * config.n_embd * 2
        assert sum(locked) >= cold + config.n_vocab * config.n_embd * 2


@pytest.mark.parametrize("hot", [0.0, 0.5])
def test_a_file_written_to_is_noticed_however_it_is_read(models: dict[str, Path], tmp_path: Path, hot: float) -> None:
    """Rows of split layers are read from the map, streamed ones for every prompt, whatever was asked of the rest."""
    model = tmp_path / "model.gguf"
    model.write_bytes(models["bamboo"].read_bytes())
    choose = lambda sizes, _fixed, _left: split(sizes.config, hot)  # noqa: E731
    options = {"threads": 1, "vram_budget": 1.0, "use_mmap": False}
    with LLM(model, device=CountedStandIn(), choose=choose, **options) as llm:
        llm.logits([1, 2, 3])
        with model.open("r+b") as file:
            file.seek(-64, 2)
            file.write(b"\xff" * 64)
        with pytest.raises(FileFormatError, match="changed while it was in use"):
            llm.logits([1, 2, 3])
