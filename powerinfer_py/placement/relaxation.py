"""What no placement can beat: the Lagrangian relaxation of the one limit that all layers share.

A price is put on every byte (or neuron); then each layer takes what is best for it alone, and a dynamic program along
the layers settles sides, changes of side, the number of blocks on the GPU and the head. For every price the sum, less
the price of the limit, bounds all choices that keep the limit (Everett 1963, Fisher 1981); the best price is found for
each number of blocks, with the head on the GPU and without, that could be the best: a `shape`. That is no weaker than
the linear relaxation, in which a model has parts of blocks, of its head and of changes of side, and takes some 10 ms.

It makes no placement: `Bracket` holds the two choices, one within the limit and one beyond it, that the best price
wavers between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerinfer_py.placement.options import ON_CPU, Options
from powerinfer_py.placement.problem import Floats, Integers, Problem, side_changes

# Prices are found by intersecting lines, each step of which reaches another corner; some 15 are usual.
MOST_STEPS = 60
# Of all time: sums of the same terms in another order differ by less.
SAME = 1e-12


@dataclass(frozen=True, eq=False)
class Limit:
    """What all layers share. weights: of each option, a row a layer. head: its weight. most: what may be used.

    least: what is used at least where nothing that would fit is left out, None where that is not known.
    """

    weights: list[Integers]
    head: int
    most: int
    least: int | None


@dataclass(frozen=True, eq=False)
class Path:
    """A choice. counts: hot neurons of each layer, ON_CPU where its block is there. seconds: of a token."""

    counts: Integers
    head: bool
    seconds: float
    weight: int


@dataclass(frozen=True, eq=False)
class Bracket:
    """The choices that the best price for a shape lies between; the same twice where one is the best."""

    below: Path
    above: Path


@dataclass(frozen=True, eq=False)
class Bounds:
    """any_s: seconds that no choice within the limit beats; filled_s: nor one that leaves nothing out that would fit.

    brackets: of the shapes that were looked at, the most promising first.
    """

    any_s: float
    filled_s: float
    brackets: list[Bracket]


class Relaxation:
    """The relaxation of one problem over these options."""

    def __init__(self, problem: Problem, options: Sequence[Options], limit: Limit) -> None:
        self._problem, self._limit = problem, limit
        self._n_layer = len(options)
        on_gpu = [option.counts != ON_CPU for option in options]
        shape = (self._n_layer, max(1, *(int(flags.sum()) for flags in on_gpu)))
        # Beyond a layer's own options there is nothing to be had.
        self._seconds, self._weights = np.full(shape, np.inf), np.zeros(shape, np.int64)
        self._counts = np.zeros(shape, np.int64)
        for layer, (option, flags) in enumerate(zip(options, on_gpu, strict=True)):
            n = int(flags.sum())
            self._seconds[layer, :n] = option.seconds[flags]
            self._weights[layer, :n] = limit.weights[layer][flags]
            self._counts[layer, :n] = option.counts[flags]
        given = problem.blocks_given
        self._cpu_seconds = [np.inf if given else problem.cpu_seconds(layer) for layer in range(self._n_layer)]
        self._head_cpu_s = np.inf if given else problem.head_seconds(on_gpu=False)
        self._unit_s = float(np.where(np.isfinite(self._seconds), self._seconds, 0.0).max(axis=1).sum())
        self._unit_s = max(self._unit_s, sum(s for s in self._cpu_seconds if np.isfinite(s)), 1e-30)
        weights = int(self._weights.max(axis=1).sum()) + limit.head
        self._most_weight = max(weights, limit.most, limit.least or 0)
        self._any, self._filled = np.zeros(0), np.zeros(0)

    def bounds(self) -> Bounds:
        """The bounds over every shape. There is always a choice: nothing on the GPU, or the given blocks."""
        fitting = self._fitting()
        self._any = np.where(fitting, -np.inf, np.inf)
        self._filled = self._any.copy()
        self._price(0.0)
        brackets: dict[int, Bracket] = {}
        while True:
            lowest = {int(np.argmin(bound)) for bound in (self._filled, self._any) if np.isfinite(bound).any()}
            wanted = lowest - set(brackets)
            if not wanted:
                break
            for shape in sorted(wanted):
                brackets[shape] = self._bracket(shape)
        ranked = sorted(brackets, key=lambda shape: (self._filled[shape], -shape))
        return Bounds(float(self._any.min()), float(self._filled.min()), [brackets[shape] for shape in ranked])

    def _fitting(self) -> npt.NDArray[np.bool_]:
        """Of each shape (blocks with the head on the CPU, then with it on the GPU) whether it fits at all."""
        smallest = np.sort(np.where(np.isfinite(self._seconds), self._weights, np.inf).min(axis=1))
        least = np.concatenate([[0.0], np.cumsum(smallest)])
        fitting = np.concatenate([least, least + self._limit.head]) <= self._limit.most
        if self._problem.blocks_given:
            fitting = np.arange(fitting.size) == fitting.size - 1
        return np.asarray(fitting, np.bool_)

    def _bracket(self, shape: int) -> Bracket:
        limit = self._limit
        best = self._price(0.0).path(shape)
        # Dearer than any time, but small enough that sums keep single bytes.
        dear = 1e3 * self._unit_s
        if best.weight > limit.most:
            target, above, below = limit.most, best, self._price(dear).path(shape)
        elif limit.least is not None and best.weight < limit.least:
            target, below, above = limit.least, best, self._price(-dear).path(shape)
            if above.weight < target:
                # So many blocks are whole before they fill the budget: such a choice is not split.
                self._filled[shape] = np.inf
                return Bracket(best, best)
        else:
            return Bracket(best, best)
        for _ in range(MOST_STEPS):
            if above.weight <= below.weight:
                break
            price = (below.seconds - above.seconds) / (above.weight - below.weight)
            path = self._price(price).path(shape)
            drop = below.seconds - path.seconds + price * (below.weight - path.weight)
            if drop <= SAME * self._unit_s:
                break
            below, above = (path, above) if path.weight <= target else (below, path)
        return Bracket(below, above)

    def _price(self, price: float) -> _Priced:
        """Choices at a price; every shape gains a bound."""
        reduced = self._seconds + price * self._weights
        places = reduced.argmin(axis=1)
        priced = _Priced(self, price, places, reduced[np.arange(self._n_layer), places])
        within = self._limit.most if price >= 0 else self._limit.least
        if within is not None:
            bound = priced.values - price * within - self._rounding(price)
            self._filled = np.maximum(self._filled, bound)
            if price >= 0:
                self._any = np.maximum(self._any, bound)
        return priced

    def _rounding(self, price: float) -> float:
        """Seconds by which a sum at this price may be off: at a dear one, what is left of large numbers is small."""
        return (self._n_layer + 4) * float(np.spacing(1.0)) * (abs(price) * self._most_weight + self._unit_s)


class _Priced:
    """The best choice of each shape at one price. values: its seconds and price (2 x (n_layer + 1))."""

    def __init__(self, owner: Relaxation, price: float, places: Integers, gpu: Floats) -> None:
        self._owner, self._places = owner, places
        problem = owner._problem
        change = problem.rates.change
        n = places.size + 1
        # Of each number of blocks so far, by the side that the token is on; it starts on the CPU.
        on_cpu, on_gpu = np.full(n, np.inf), np.full(n, np.inf)
        on_cpu[0] = 0.0
        self._down: list[npt.NDArray[np.bool_]] = []
        self._up: list[npt.NDArray[np.bool_]] = []
        for cpu_seconds, gpu_value in zip(owner._cpu_seconds, gpu.tolist(), strict=True):
            down, up = on_gpu + change, on_cpu + change
            self._down.append(down < on_cpu)
            self._up.append(up < on_gpu)
            after = np.full(n, np.inf)
            after[1:] = np.minimum(on_gpu, up)[:-1] + gpu_value
            on_cpu, on_gpu = np.minimum(on_cpu, down) + cpu_seconds, after
        head_gpu = problem.head_seconds(on_gpu=True) + price * owner._limit.head + change
        # By the side of the last layer; the logits are on the CPU.
        self._last = np.concatenate([on_gpu + change < on_cpu, on_gpu <= on_cpu + change])
        off = np.minimum(on_cpu, on_gpu + change) + owner._head_cpu_s
        on = np.minimum(on_cpu + change, on_gpu) + head_gpu
        self.values: Floats = np.concatenate([off, on])

    def path(self, shape: int) -> Path:
        """The choice that reaches the value of a shape, times and weights summed anew."""
        owner = self._owner
        head, left = divmod(shape, self._places.size + 1)
        side = bool(self._last[shape])
        blocks = [False] * self._places.size
        for layer in reversed(range(self._places.size)):
            blocks[layer] = side
            left -= side
            moved = bool((self._up if side else self._down)[layer][left])
            side = side != moved
        layers = np.flatnonzero(blocks)
        counts = np.full(len(blocks), ON_CPU, np.int64)
        counts[layers] = owner._counts[layers, self._places[layers]]
        return Path(counts, bool(head), self._time(blocks, bool(head)), self._weight(layers, bool(head)))

    def _time(self, blocks: list[bool], head: bool) -> float:
        owner = self._owner
        problem = owner._problem
        seconds = problem.head_seconds(head)
        seconds += side_changes(blocks, head) * problem.rates.change
        for layer, block in enumerate(blocks):
            seconds += float(owner._seconds[layer, self._places[layer]]) if block else owner._cpu_seconds[layer]
        return seconds

    def _weight(self, layers: Integers, head: bool) -> int:
        owner = self._owner
        weight = int(owner._weights[layers, self._places[layers]].sum())
        return weight + (owner._limit.head if head else 0)
