"""The table of memory at load, the same as JSON, and how budgets, indices and chunks get into it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers_hybrid import CountedStandIn, split
from helpers_logits import TOKENS

from powerinfer_py import LLM
from powerinfer_py.errors import OptionError
from powerinfer_py.placement.budget import GIB, BudgetError
from powerinfer_py.placement.gpuidx import GpuIndexError
from powerinfer_py.runtime.hybrid.stand_in import StandIn


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy in a folder of its own, where an index is written beside it."""
    return Path(shutil.copy(models["relu-llama"], tmp_path / "model.powerinfer.gguf"))


def load(path: Path, budget: float, device: StandIn | None = None, **options: object) -> LLM:
    options = {"threads": 1, "context_length": 32, "batch_size": 16, **options}
    return LLM(path, vram_budget=budget, device=device or CountedStandIn(), **options)


def test_the_index_is_solved_kept_and_used_again(model: Path) -> None:
    budget = 4_000_000 / GIB
    with load(model, budget) as llm:
        first = llm.stats.vram
        table = "\n".join(llm.memory_table)
        assert any("powerinfer-profile -m" in notice for notice in llm.notices)
        logits = llm.logits(TOKENS)
    assert first["index_origin"] == "solved"
    assert Path(first["index_path"]).is_file()
    assert json.loads(json.dumps(first)) == first
    assert 0 < first["neurons_on_gpu_share"] < 1
    assert first["reserved_bytes"] <= first["budget_bytes"] == 4_000_000
    for name in ("dense weights", "predictors", "KV cache", "activations", "staging", "hot neurons", "total", "free"):
        assert f"\n  {name}" in table
    assert "budget 3.81 MiB" in table
    assert f"{first['neurons_on_gpu_share']:.1%} of the neurons" in table
    assert "an estimate" in table
    with load(model, budget) as llm:
        again = llm.stats.vram
        assert (llm.logits(TOKENS) == logits).all()
    assert again["index_origin"] == "kept"
    assert again["names"] == first["names"]
    with load(model, budget, reset_gpu_index=True) as llm:
        assert llm.stats.vram["index_origin"] == "solved"
    with load(model, budget, disable_gpu_index=True) as llm:
        assert llm.stats.vram["index_origin"] == "disabled"
        assert llm.stats.vram["neurons_on_gpu_share"] == 0
    with load(model, 2 * budget, gpu_index=first["index_path"]) as llm:
        assert llm.stats.vram["index_origin"] == "given"


def test_an_index_of_another_model_is_refused(model: Path, fixtures: Path) -> None:
    with pytest.raises(GpuIndexError, match=r"bamboo\.reference\.gpuidx"):
        load(model, 1.0, gpu_index=str(fixtures / "bamboo.reference.gpuidx"))


def test_a_budget_of_nothing_touches_no_device(models: dict[str, Path]) -> None:
    class Untouchable(StandIn):
        def memory(self) -> object:
            raise AssertionError("the device was asked")

        context_bytes = allocate = make_kernels = memory

    with load(models["bamboo"], 0.0, Untouchable()) as llm:
        assert llm.stats.vram == {}
        assert llm.memory_table == []
        assert llm.engine.hybrid is None


@pytest.mark.parametrize("budget", [-2.0, float("nan"), float("inf"), "8GB"])
def test_budgets_that_are_none(models: dict[str, Path], budget: float) -> None:
    with pytest.raises(OptionError, match="vram_budget must be -1 or a number of GiB"):
        load(models["bamboo"], budget)


def test_budgets_that_the_device_cannot_meet(models: dict[str, Path]) -> None:
    small = StandIn("native", total_bytes=1 << 30)
    with pytest.raises(BudgetError, match=r"GPU has 1\.00 GiB"):
        load(models["bamboo"], 2.0, small)
    with pytest.raises(BudgetError, match="the minimum is"):
        load(models["bamboo"], 1e-6, small)
    tiny = StandIn("native", total_bytes=100 << 20)
    with pytest.raises(BudgetError, match="margin"):
        load(models["bamboo"], -1.0, tiny)
    choose = lambda sizes, _fixed, _left: split(sizes.config, 1.0)  # noqa: E731
    with load(models["bamboo"], -1.0, small, choose=choose) as llm:
        assert llm.stats.vram["budget_bytes"] == (1 << 30) - (256 << 20)


def test_more_neurons_than_fit_are_refused_before_anything_is_loaded(models: dict[str, Path]) -> None:
    device = CountedStandIn()
    choose = lambda sizes, _fixed, _left: split(sizes.config, 1.0)  # noqa: E731
    with pytest.raises(BudgetError, match=r"of layer \d+ needs \d+ bytes"):
        load(models["relu-llama"], 4_000_000 / GIB, device, choose=choose)
    assert device.live_bytes == 0


def test_the_prompt_chunk_shrinks_and_says_so(model: Path) -> None:
    with load(model, 3_000_000 / GIB, batch_size=512) as llm:
        chunk = llm.stats.vram["prompt_chunk"]
        assert 1 <= chunk < 512
        assert llm.engine.batch_size == chunk
        assert any(f"prompts run {chunk} tokens at a time instead of 512" in line for line in llm.memory_table)
        assert len(llm.logits(TOKENS * 2)) == 2 * len(TOKENS)


def test_shares_are_in_the_timings(models: dict[str, Path]) -> None:
    choose = lambda sizes, _fixed, _left: split(sizes.config, 0.5)  # noqa: E731
    with load(models["bamboo"], 1.0, choose=choose) as llm:
        llm.logits(TOKENS)
        share = llm.stats.to_dict()["gpu_share"]
        assert 0.3 < share < 0.7
        assert f"{share:.1%} of them on the GPU" in llm.stats.lines()[-1]
    with LLM(models["bamboo"], threads=1) as llm:
        assert "GPU" not in llm.stats.lines()[-1]
