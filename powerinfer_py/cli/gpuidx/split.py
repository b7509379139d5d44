"""What `powerinfer-gpuidx` solves: one split for the budget that was asked for, and estimates for others.

It prints and writes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from powerinfer_py.config import CacheType, ModelConfig, RuntimeOptions, Sparsity
from powerinfer_py.gguf import GGUFFile, fingerprint
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement import rates as machine
from powerinfer_py.placement.budget import GIB, BudgetError, DeviceMemory, budget_in_bytes
from powerinfer_py.placement.fixed_bytes import FixedBytes, choose_chunk, fixed_bytes, minimum_bytes
from powerinfer_py.placement.gpuidx import GpuIndex
from powerinfer_py.placement.index_choice import find_frequencies, make_index, make_problem, solved_for_of
from powerinfer_py.placement.problem import Problem, Rates, captured_share
from powerinfer_py.placement.sizes import ModelSizes, model_sizes
from powerinfer_py.placement.solver import Solution, solve, solve_by_frequency, solve_evenly
from powerinfer_py.placement.statistics.frequencies import Frequencies
from powerinfer_py.runtime.devices import rates_of_this_machine
from powerinfer_py.runtime.engine import DEFAULT_CONTEXT
from powerinfer_py.runtime.hybrid.device import Arrangement
from powerinfer_py.runtime.hybrid.layer_probe import probe_kind
from powerinfer_py.runtime.modes import resolve_sparsity
from powerinfer_py.runtime.threads import default_threads

CURVE_GIB = (4, 6, 8, 12, 16, 24)


@dataclass(frozen=True)
class Estimate:
    """What another budget would give; seconds and share are None where the model does not fit into it at all."""

    budget_gib: float
    seconds: float | None
    neurons_share: float | None
    captured: float | None


@dataclass(frozen=True, eq=False)
class Split:
    """A solved split. fixed, context_bytes: None and 0 where the budget was one of neurons alone. method: "milp",
    "frequency" or "even". curve: estimates for other budgets of the whole process, and for the CPU alone (0 GiB).
    """

    model: Path
    config: ModelConfig
    sparsity: Sparsity
    sizes: ModelSizes
    problem: Problem
    solution: Solution
    index: GpuIndex
    frequencies: Frequencies | None
    method: str
    budget_bytes: int
    context_bytes: int
    fixed: FixedBytes | None
    minimum_bytes: int
    curve: tuple[Estimate, ...]
    notices: tuple[str, ...]

    @property
    def captured(self) -> float | None:
        """Share of the activations on the GPU; None without statistics."""
        return None if self.frequencies is None else captured_share(self.problem, self.solution.placement)


def make_split(file: GGUFFile, model: Path, arguments: argparse.Namespace) -> Split:
    """Solves what the flags ask for. Raises PowerInferError."""
    config = read_config(file, RuntimeOptions())
    sparsity = resolve_sparsity(Sparsity(arguments.sparsity), config)
    sizes = model_sizes(
        file,
        config,
        sparsity=sparsity,
        n_ctx=arguments.ctx_size or min(config.n_ctx_train, DEFAULT_CONTEXT),
        n_slots=arguments.parallel,
        cache_type_k=CacheType(arguments.cache_type_k),
        cache_type_v=CacheType(arguments.cache_type_v),
    )
    notices: list[str] = []
    folder = None if arguments.activation is None else Path(arguments.activation)
    frequencies = find_frequencies(model, sizes, sparsity, notices, folder)
    rates = _rates(arguments, lambda arrangement: probe_kind(file, sizes, sparsity, RuntimeOptions(), arrangement))
    context = machine.ASSUMED_CONTEXT_BYTES if arguments.gpu_context is None else int(arguments.gpu_context * 2**20)
    fixed, budget = None, 0
    if arguments.vram_budget is not None:
        budget = _vram_bytes(arguments.vram_budget)
        fixed = choose_chunk(sizes, arguments.batch_size, budget, context)
        left = budget - context - fixed.total
        problem = make_problem(sizes, sparsity, fixed, left, rates, frequencies)
    else:
        problem = _neurons_alone(sizes, sparsity, arguments, rates, frequencies)
    method, solver = _solver(arguments.method, sparsity, frequencies)
    solution = solver(problem)
    solved_for = solved_for_of(problem, solution, fingerprint(file), frequencies, budget)
    curve = _curve(sizes, sparsity, arguments.batch_size, context, rates, frequencies, solver)
    if curve[0].seconds is not None and solution.seconds > curve[0].seconds:
        notices.append("by these rates the CPU alone is faster than with the GPU: this model is small for it")
    return Split(
        model=model,
        config=config,
        sparsity=sparsity,
        sizes=sizes,
        problem=problem,
        solution=solution,
        index=make_index(sizes, solution.placement, solved_for),
        frequencies=frequencies,
        method=method,
        budget_bytes=budget,
        context_bytes=context if fixed is not None else 0,
        fixed=fixed,
        minimum_bytes=minimum_bytes(sizes, arguments.batch_size, context),
        curve=curve,
        notices=tuple(notices),
    )


def _vram_bytes(gib: float) -> int:
    """A budget for this machine's GPU or, where it has none or the figure is for another, as it is."""
    if gib != -1:
        return int(gib * GIB)
    import torch

    if not torch.cuda.is_available():
        raise BudgetError("--vram-budget -1 is all that is free on the GPU, and this machine has none: name a budget")

    def memory() -> DeviceMemory:
        free, total = torch.cuda.mem_get_info()
        return DeviceMemory(total, free)

    return budget_in_bytes(gib, memory)


def _neurons_alone(
    sizes: ModelSizes, sparsity: Sparsity, arguments: argparse.Namespace, rates: Rates, frequencies: Frequencies | None
) -> Problem:
    """Every block on the GPU, and so many bytes or so many neurons."""
    everything = sum(layer.hot_bytes(sizes.config.n_ff) for layer in sizes.layers)
    bytes_left = everything if arguments.ffn_budget is None else min(everything, int(arguments.ffn_budget * GIB))
    problem = make_problem(sizes, sparsity, fixed_bytes(sizes, 1), bytes_left, rates, frequencies)
    limit = None if arguments.neurons is None else int(arguments.neurons * problem.n_neurons)
    return replace(problem, blocks_given=True, neuron_limit=limit)


def _solver(
    method: str, sparsity: Sparsity, frequencies: Frequencies | None
) -> tuple[str, Callable[[Problem], Solution]]:
    if frequencies is None and sparsity is not Sparsity.DENSE:
        return "even", solve_evenly
    return method, solve if method == "milp" else solve_by_frequency


def _rates(arguments: argparse.Namespace, kind: Callable[[Arrangement], str]) -> Rates:
    whole = (arguments.gpu_bandwidth, arguments.cpu_bandwidth, arguments.sync_time, arguments.layer_time)
    # What is given in full needs no probe.
    known = None not in whole
    base = machine.assumed_rates() if known else rates_of_this_machine(arguments.threads or default_threads(), kind)
    gpu, cpu, sync, layer = whole
    return machine.given_rates(
        base,
        gpu_gb_per_s=gpu,
        cpu_gb_per_s=cpu,
        synchronise_us=sync,
        layer_us=layer,
        gpu_rows_gb_per_s=arguments.gpu_rows_bandwidth,
        cpu_rows_gb_per_s=arguments.cpu_rows_bandwidth,
        rows_us=arguments.rows_time,
        change_us=arguments.change_time,
    )


def _curve(
    sizes: ModelSizes,
    sparsity: Sparsity,
    batch_size: int,
    context: int,
    rates: Rates,
    frequencies: Frequencies | None,
    solver: Callable[[Problem], Solution],
) -> tuple[Estimate, ...]:
    problem = make_problem(sizes, sparsity, fixed_bytes(sizes, 1), 0, rates, frequencies)
    cpu_alone = sum(problem.cpu_seconds(layer) for layer in range(len(sizes.layers))) + problem.head_seconds(False)
    estimates = [Estimate(0, cpu_alone, 0.0, 0.0)]
    for gib in CURVE_GIB:
        try:
            fixed = choose_chunk(sizes, batch_size, gib * GIB, context)
        except BudgetError:
            estimates.append(Estimate(gib, None, None, None))
            continue
        left = gib * GIB - context - fixed.total
        problem = make_problem(sizes, sparsity, fixed, left, rates, frequencies)
        solution = solver(problem)
        captured = None if frequencies is None else captured_share(problem, solution.placement)
        estimates.append(Estimate(gib, solution.seconds, solution.placement.n_hot / problem.n_neurons, captured))
    return tuple(estimates)
