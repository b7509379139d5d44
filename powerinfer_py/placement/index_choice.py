"""Which placement a model runs with: an index given by hand, the one kept from before, or one solved now.

The one door for the runtime: `IndexChooser`. Invariant: an index is used only if it fits the model, and one that was
kept only if it is what would be solved for again: same model file, same statistics, same mode, nearly the same bytes.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from powerinfer_py.config import Sparsity
from powerinfer_py.errors import PowerInferError, printable
from powerinfer_py.gguf import GGUFFile, fingerprint
from powerinfer_py.placement.candidates import candidates
from powerinfer_py.placement.choice import Choice
from powerinfer_py.placement.fixed_bytes import FixedBytes
from powerinfer_py.placement.gpuidx import NO_STATISTICS, GpuIndex, GpuIndexError, SolvedFor, load_gpu_index
from powerinfer_py.placement.index_files import IndexPaths, load_own
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.problem import (
    LayerProblem,
    Problem,
    Rates,
    captured_share,
    expected_seconds,
    placement_bytes,
)
from powerinfer_py.placement.sizes import ModelSizes
from powerinfer_py.placement.solver import Solution, solve, solve_evenly
from powerinfer_py.placement.statistics.frequencies import Frequencies, find_folder, read_frequencies

# A kept index whose bytes are at least this share of the present budget is what would be solved for again.
KEPT_SHARE = 0.97
# Share of tokens for which a neuron is taken to fire where nothing was counted; ReLU models lie between 3 and 15 %.
ASSUMED_FREQUENCY = 0.1


@dataclass(frozen=True)
class IndexOptions:
    """given: `--gpu-index`. reset: `--reset-gpu-index`, solve again. disable: `--disable-gpu-index`, no neurons."""

    given: Path | None = None
    reset: bool = False
    disable: bool = False


@dataclass(frozen=True, eq=False)
class ChosenPlacement:
    """placement, and where it came from: "given", "kept", "solved" or "disabled". path: its file, where there is one.

    expected_s: of a token, by the rates it was held against. captured: share of the activations on the GPU, None where
    there are no statistics. gap: of the solver, None where the placement was not solved now. notices: for the user.
    """

    placement: Placement
    origin: str
    path: Path | None
    expected_s: float
    captured: float | None
    gap: float | None
    notices: tuple[str, ...]


class IndexChooser:
    """Chooses the placement of one model; called with what is known once the budget's fixed part is.

    file: open while it is called. context_bytes: what the process holds on the device besides; part of the budget that
    a kept file names. chosen: the last answer, with where it came from and what the user should know of it.
    """

    def __init__(
        self, file: GGUFFile, sparsity: Sparsity, rates: Rates, options: IndexOptions, context_bytes: int = 0
    ) -> None:
        self._file = file
        self._model = Path(file.path or "")
        self._sparsity = sparsity
        self._rates = rates
        self._options = options
        self._context_bytes = context_bytes
        self.chosen: ChosenPlacement | None = None

    def __call__(self, sizes: ModelSizes, fixed: FixedBytes, budget_left: int) -> Placement:
        """The placement in `budget_left` bytes; what was solved is kept for the next time.

        Raises GpuIndexError for an index given by hand that is damaged, of another model, or larger than the budget.
        """
        self.chosen = self._choose(sizes, fixed, budget_left)
        return self.chosen.placement

    def _choose(self, sizes: ModelSizes, fixed: FixedBytes, budget_left: int) -> ChosenPlacement:
        options, notices = self._options, list[str]()
        frequencies = None if options.disable else find_frequencies(self._model, sizes, self._sparsity, notices)
        problem = make_problem(sizes, self._sparsity, fixed, budget_left, self._rates, frequencies)
        if options.given is not None:
            placement = given_placement(options.given, self._file, problem, sizes)
            return _chosen(problem, placement, "given", options.given, None, frequencies, notices)
        if options.disable:
            solution = solve(replace(problem, neuron_limit=0))
            return _chosen(problem, solution.placement, "disabled", None, solution.gap, frequencies, notices)
        wanted = _Wanted(problem, sizes, fingerprint(self._file), frequencies, fixed.total)
        paths = IndexPaths.of(self._model, wanted.model_fingerprint)
        for path in () if options.reset else paths.readable():
            kept = wanted.kept(path)
            if isinstance(kept, Placement):
                notices += paths.foreign_notices(path)
                return _chosen(problem, kept, "kept", path, None, frequencies, notices)
            notices.append(f"{printable(str(path), 400)} is not used: {kept}")
        evenly = frequencies is None and self._sparsity is not Sparsity.DENSE
        solution = solve_evenly(problem) if evenly else solve(problem)
        budget_bytes = self._context_bytes + fixed.total + budget_left
        solved_for = solved_for_of(problem, solution, wanted.model_fingerprint, frequencies, budget_bytes)
        written, told = paths.save(make_index(sizes, solution.placement, solved_for))
        return _chosen(problem, solution.placement, "solved", written, solution.gap, frequencies, [*notices, *told])


def make_problem(
    sizes: ModelSizes,
    sparsity: Sparsity,
    fixed: FixedBytes,
    budget_left: int,
    rates: Rates,
    frequencies: Frequencies | None,
) -> Problem:
    """The solver's question for a model and `budget_left` bytes; without statistics all neurons fire alike."""
    return Problem(
        layer_problems(sizes, frequencies),
        sparsity,
        rates,
        budget_bytes=budget_left,
        head_bytes=sizes.head_bytes,
        head_extra_bytes=fixed.head_extra,
        split_bytes=fixed.staging,
        n_slots=sizes.n_slots,
    )


def layer_problems(sizes: ModelSizes, frequencies: Frequencies | None) -> tuple[LayerProblem, ...]:
    """The solver's layers of a model."""
    if frequencies is None:
        even = np.full(sizes.config.n_ff, ASSUMED_FREQUENCY)
        return tuple(LayerProblem(layer, even) for layer in sizes.layers)
    predicted = frequencies.predicted
    return tuple(
        LayerProblem(layer, frequencies.fired[number], None if predicted is None else predicted[number])
        for number, layer in enumerate(sizes.layers)
    )


def make_index(sizes: ModelSizes, placement: Placement, solved_for: SolvedFor | None) -> GpuIndex:
    """A placement as a file has it."""
    hot = tuple(placed.hot for placed in placement.layers)
    capacity = sum(ids.size * layer.neuron_bytes for ids, layer in zip(hot, sizes.layers, strict=True))
    return GpuIndex(hot, sizes.config.n_ff, capacity, solved_for)


def solved_for_of(
    problem: Problem, solution: Solution, identity: str, frequencies: Frequencies | None, budget_bytes: int
) -> SolvedFor:
    """What a solution was solved for, as its file says it."""
    return SolvedFor(
        model_fingerprint=identity,
        activation_hash=NO_STATISTICS if frequencies is None else frequencies.sha256,
        budget_bytes=budget_bytes,
        rates={**problem.rates.to_dict(), "sparsity": problem.mode.value},
        gap=solution.gap,
        blocks_on_gpu=tuple(placed.block_on_gpu for placed in solution.placement.layers),
        head_on_gpu=solution.placement.head_on_gpu,
    )


def given_placement(path: Path, file: GGUFFile, problem: Problem, sizes: ModelSizes) -> Placement:
    """The placement of an index given by hand; without our keys the blocks of its neurons, then what else fits.

    Raises GpuIndexError where it does not fit the model or the budget.
    """
    index = load_gpu_index(path, len(sizes.layers), sizes.config.n_ff)
    solved = index.solved_for
    if solved is not None and solved.model_fingerprint != fingerprint(file):
        raise GpuIndexError("was solved for another model file", path=path)
    if (fault := _unparted(index, sizes)) is not None:
        raise GpuIndexError(fault, path=path)
    placement = _placement(index, solved)
    n_bytes = placement_bytes(problem, placement)
    if n_bytes > problem.budget_bytes:
        raise GpuIndexError(
            f"needs {n_bytes} bytes for its neurons and the blocks of their layers; the budget leaves "
            f"{max(problem.budget_bytes, 0)}",
            path=path,
        )
    if solved is not None:
        return placement
    choice = Choice.nothing(problem, candidates(problem))
    choice.blocks = [placed.block_on_gpu for placed in placement.layers]
    choice.counts = [placed.hot.size for placed in placement.layers]
    choice.fill_blocks()
    layers = zip(choice.blocks, index.hot, strict=True)
    return Placement(tuple(LayerPlacement(block, hot) for block, hot in layers), head_on_gpu=choice.head)


def find_frequencies(
    model: Path, sizes: ModelSizes, sparsity: Sparsity, notices: list[str], folder: Path | None = None
) -> Frequencies | None:
    """The statistics of a folder, by default the one beside the model; None where the mode does not look at them.

    A folder that was named is read or refused. Without one, what is wrong with the statistics, or that there are none
    and how to make some, goes to `notices`, and the result is None.
    """
    if folder is not None:
        return read_frequencies(folder, sizes.config)
    if sparsity is Sparsity.DENSE:
        return None
    found = find_folder(model)
    if found is not None:
        try:
            return read_frequencies(found, sizes.config)
        except PowerInferError as error:
            notices.append(f"activation statistics are not used: {error}")
    notices.append(
        "without activation statistics neurons are spread evenly over the layers; to learn which are hot, run: "
        f"powerinfer-profile -m {shlex.quote(printable(str(model), 400))}"
    )
    return None


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What a kept index must have been solved for."""

    problem: Problem
    sizes: ModelSizes
    model_fingerprint: str
    frequencies: Frequencies | None
    fixed_bytes: int

    def kept(self, path: Path) -> Placement | str:
        """The placement of a kept index, or why another has to be solved."""
        problem, sizes = self.problem, self.sizes
        index = load_own(path, len(sizes.layers), sizes.config.n_ff)
        if isinstance(index, str):
            return index
        solved = index.solved_for
        if solved is None or solved.model_fingerprint != self.model_fingerprint:
            return "it was solved for another model file"
        if solved.activation_hash != (NO_STATISTICS if self.frequencies is None else self.frequencies.sha256):
            return "it was solved for other activation statistics"
        if solved.rates.get("sparsity") != problem.mode.value:
            return "it was solved for another sparsity mode"
        if (fault := _unparted(index, sizes)) is not None:
            return fault
        placement = _placement(index, solved)
        n_bytes, budget = placement_bytes(problem, placement), problem.budget_bytes
        if n_bytes > budget:
            return f"it needs {n_bytes} bytes, the budget leaves {budget}"
        unit = smallest_unit(problem, placement)
        too_small = self.fixed_bytes + n_bytes < KEPT_SHARE * (self.fixed_bytes + budget)
        if too_small and unit is not None and n_bytes + unit <= budget:
            return f"it uses {n_bytes} of the {budget} bytes that the budget leaves"
        return placement


def smallest_unit(problem: Problem, placement: Placement) -> int | None:
    """Bytes of the smallest thing that is not on the GPU yet: a neuron, a block, the head; None where all is there."""
    units = [] if placement.head_on_gpu else [problem.head_budget_bytes]
    # A block comes without neurons.
    splitting = 0 if placement.is_split(problem.layers[0].fired.size) else problem.split_budget_bytes
    for number, (layer, placed) in enumerate(zip(problem.layers, placement.layers, strict=True)):
        sizes, n_hot = layer.sizes, placed.hot.size
        if not placed.block_on_gpu:
            units.append(problem.block_bytes(number) + splitting)
        elif n_hot < layer.fired.size:
            units.append(sizes.hot_bytes(n_hot + sizes.neuron_multiple) - sizes.hot_bytes(n_hot))
    return min(units, default=None)


def _placement(index: GpuIndex, solved: SolvedFor | None) -> Placement:
    blocks = [hot.size > 0 for hot in index.hot] if solved is None else list(solved.blocks_on_gpu)
    layers = tuple(LayerPlacement(block, hot) for block, hot in zip(blocks, index.hot, strict=True))
    return Placement(layers, head_on_gpu=solved is not None and solved.head_on_gpu)


def _unparted(index: GpuIndex, sizes: ModelSizes) -> str | None:
    """What is wrong with an index whose neurons part rows that cannot be parted."""
    for number, (hot, layer) in enumerate(zip(index.hot, sizes.layers, strict=True)):
        unit = layer.neuron_multiple
        if unit > 1 and not np.all(np.bincount(hot // unit, minlength=1) % unit == 0):
            return f"layer {number} of this model can only be parted in groups of {unit} neurons"
    return None


def _chosen(
    problem: Problem,
    placement: Placement,
    origin: str,
    path: Path | None,
    gap: float | None,
    frequencies: Frequencies | None,
    notices: list[str],
) -> ChosenPlacement:
    return ChosenPlacement(
        placement,
        origin,
        path,
        expected_seconds(problem, placement),
        None if frequencies is None else captured_share(problem, placement),
        gap,
        tuple(notices),
    )
