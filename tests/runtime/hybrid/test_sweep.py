"""Budgets from nothing to everything, solved for: the logits of the CPU alone, and not a byte beyond the budget.

By default a few budgets and numbers of sequences a model; with POWERINFER_SWEEP=full in the environment 21 budgets,
every mode, and 1, 2, 4 and 7 sequences at once, for every model (some minutes).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers_hybrid import CountedStandIn, bound_of, run_sequences, sequences_of
from helpers_logits import nmse

from powerinfer_py.config import RuntimeOptions, Sparsity
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.budget import GIB, BudgetError
from powerinfer_py.placement.fixed_bytes import FixedBytes, fixed_bytes, minimum_bytes
from powerinfer_py.placement.index_choice import find_frequencies, make_problem, smallest_unit
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.problem import Rates
from powerinfer_py.placement.sizes import ModelSizes, model_sizes
from powerinfer_py.placement.solver import solve
from powerinfer_py.runtime.engine import Engine

# A GPU of ten times the CPU's bandwidth, 20 us to hand over and 20 us to launch a layer.
STATED = Rates(400e9, 40e9, 20e-6, 20e-6, "stated")
CONTEXT_BYTES = 300_000
N_SLOTS, N_CTX, BATCH = 7, 32, 32
FULL = os.environ.get("POWERINFER_SWEEP") == "full"
STEPS = range(21) if FULL else (0, 3, 8, 13, 20)
COUNTS = (1, 2, 4, 7) if FULL else (1, 7)
MODES = ["predictor", "exact", "dense"]
SOME = [("bamboo.q4", "predictor"), ("relu-falcon", "exact"), ("opt", "predictor"), ("arcee", "dense")]
NAMES = ["relu-llama", "relu-llama.q4", "bamboo", "bamboo.q4", "relu-falcon", "relu-falcon.q4", "opt", "arcee"]
CASES = [*((name, mode) for name in NAMES for mode in MODES), ("silu", "dense")] if FULL else SOME


@dataclass
class Chosen:
    """A chooser that solves, and remembers the smallest thing it left out."""

    path: Path
    sparsity: Sparsity
    unit: int | None = None

    def __call__(self, sizes: ModelSizes, fixed: FixedBytes, left: int) -> Placement:
        frequencies = find_frequencies(self.path, sizes, self.sparsity, [], _statistics(self.path))
        problem = make_problem(sizes, self.sparsity, fixed, left, STATED, frequencies)
        placement = solve(problem).placement
        self.unit = smallest_unit(problem, placement)
        return placement


def _statistics(path: Path) -> Path | None:
    folder = path.parent / f"{path.name.split('.')[0]}-activation"
    return folder if folder.is_dir() else None


def options_of(sparsity: str, **more: float) -> RuntimeOptions:
    return RuntimeOptions(
        Sparsity(sparsity), threads=2, context_length=N_CTX, max_batch=N_SLOTS, batch_size=BATCH, **more
    )


def sizes_of(path: Path, sparsity: str) -> ModelSizes:
    with open_gguf(path) as file:
        config = read_config(file, RuntimeOptions())
        return model_sizes(file, config, sparsity=Sparsity(sparsity), n_ctx=N_CTX, n_slots=N_SLOTS)


def everything(sizes: ModelSizes) -> int:
    """The budget with which nothing is left on the CPU."""
    fixed = fixed_bytes(sizes, BATCH)
    layers = sum(layer.block_bytes + layer.hot_bytes(sizes.config.n_ff) for layer in sizes.layers)
    return CONTEXT_BYTES + fixed.total + fixed.head_extra + sizes.head_bytes + layers


def logits_by_count(engine: Engine) -> dict[int, np.ndarray]:
    return {n: run_sequences(engine, sequences_of(n, engine.config.n_vocab)) for n in COUNTS}


@pytest.mark.parametrize(("name", "sparsity"), CASES)
@pytest.mark.timeout(1200 if FULL else 120)
def test_budgets(models: dict[str, Path], name: str, sparsity: str) -> None:
    path = models[name]
    with open_gguf(path) as file:
        expected = logits_by_count(Engine(file, options_of(sparsity)))
    sizes = sizes_of(path, sparsity)
    whole, least = everything(sizes), minimum_bytes(sizes, BATCH, CONTEXT_BYTES)
    worst, shares = 0.0, []
    for budget in sorted({whole * step // 20 for step in STEPS} | {least}):
        choose, device = Chosen(path, Sparsity(sparsity)), CountedStandIn(context_bytes=CONTEXT_BYTES)
        options = options_of(sparsity, vram_budget=budget / GIB)
        with open_gguf(path) as file:
            if 0 < budget < least:
                with pytest.raises(BudgetError, match=f"minimum is .*{least} bytes"):
                    Engine(file, options, device=device, choose=choose)
                continue
            engine = Engine(file, options, device=device, choose=choose)
        actual = logits_by_count(watched(engine, device))
        worst = max(worst, *(nmse(actual[n], expected[n]) for n in COUNTS))
        shares.append(engine.activity.share_on_device)
        check_bytes(engine, device, budget, choose.unit)
        engine.close()
    assert worst < bound_of(name, sparsity)
    assert shares[0] == 0.0
    assert shares[-1] == 1.0
    print(f"{name} {sparsity}: worst NMSE {worst:.1e}, shares on the device {[round(share, 2) for share in shares]}")


def watched(engine: Engine, device: CountedStandIn) -> Engine:
    """The engine, whose every copy and mark from now on counts the device's memory."""
    if engine.hybrid is not None:
        device.watch(engine.hybrid.plan.ledger)
    return engine


def check_bytes(engine: Engine, device: CountedStandIn, budget: int, unit: int | None) -> None:
    if engine.hybrid is None:
        assert budget == 0
        assert device.live_bytes == 0
        return
    ledger = engine.hybrid.plan.ledger
    device.check()
    assert device.n_checks > 10
    assert ledger.budget_bytes == budget
    assert ledger.reserved_bytes <= budget
    if unit is not None:
        assert budget - ledger.used_bytes <= max(0.03 * budget, unit)
