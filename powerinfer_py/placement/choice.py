"""A placement while it is being made: which blocks, how many neurons of each layer, the head; and filling what is left.

Invariant: bytes and neurons never exceed the problem's limits. After `fill` nothing that is left out would still fit.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from powerinfer_py.placement.candidates import Candidates
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.problem import Problem, side_changes


@dataclass(eq=False)
class Choice:
    """blocks: a flag a layer. counts: hot neurons of each. head: whether it is on the GPU."""

    problem: Problem
    tables: list[Candidates]
    blocks: list[bool]
    counts: list[int]
    head: bool

    @classmethod
    def nothing(cls, problem: Problem, tables: list[Candidates]) -> Choice:
        """Everything that may be on the CPU is."""
        n_layer = len(problem.layers)
        return cls(problem, tables, [problem.blocks_given] * n_layer, [0] * n_layer, problem.blocks_given)

    @classmethod
    def everything(cls, problem: Problem, tables: list[Candidates]) -> Choice:
        """Everything is on the GPU, whether it fits or not."""
        n_layer = len(problem.layers)
        return cls(problem, tables, [True] * n_layer, [table.n_neurons for table in tables], True)

    @property
    def is_split(self) -> bool:
        """Whether a layer has its block on the GPU and not all of its neurons."""
        layers = zip(self.blocks, self.counts, self.tables, strict=True)
        return any(block and count < table.n_neurons for block, count, table in layers)

    @property
    def n_bytes(self) -> int:
        """Bytes of the budget that are taken."""
        total = self.problem.head_budget_bytes if self.head else 0
        total += self.problem.split_budget_bytes if self.is_split else 0
        for layer, (block, count) in enumerate(zip(self.blocks, self.counts, strict=True)):
            if block:
                total += self.problem.block_bytes(layer) + self.problem.layers[layer].sizes.hot_bytes(count)
        return total

    @property
    def neurons_left(self) -> int:
        """How many more neurons the limit allows."""
        limit = self.problem.n_neurons if self.problem.neuron_limit is None else self.problem.neuron_limit
        return limit - sum(self.counts)

    @property
    def fits(self) -> bool:
        """Whether all limits are kept."""
        return self.n_bytes <= self.problem.budget_bytes and self.neurons_left >= 0

    def seconds(self, layer: int, count: int) -> float:
        """Expected time of a layer with its block and `count` neurons on the GPU."""
        table = self.tables[layer]
        all_hot = np.array([count == table.n_neurons])
        return float(self.problem.gpu_seconds(layer, table.hot_work[count : count + 1], all_hot)[0])

    @property
    def total_seconds(self) -> float:
        """Expected time of a token."""
        layers = enumerate(zip(self.blocks, self.counts, strict=True))
        seconds = sum(self.seconds(i, count) if block else self.problem.cpu_seconds(i) for i, (block, count) in layers)
        changes = side_changes(self.blocks, self.head) * self.problem.rates.change
        return seconds + self.problem.head_seconds(self.head) + changes

    def shrink(self) -> None:
        """Takes neurons, then blocks, away until the limits are kept: what costs least a byte first."""
        over = self.n_bytes - self.problem.budget_bytes
        if over > 0 and not self.is_split:
            # The first neuron that is taken away makes it so.
            over += self.problem.split_budget_bytes
        too_many = -self.neurons_left
        queue = [self._step_back(layer) for layer, count in enumerate(self.counts) if count]
        heapq.heapify(queue)
        while (over > 0 or too_many > 0) and queue:
            _, layer, count = heapq.heappop(queue)
            sizes, before = self.tables[layer].layer.sizes, self.counts[layer]
            over -= sizes.hot_bytes(before) - sizes.hot_bytes(count)
            too_many -= before - count
            self.counts[layer] = count
            if count:
                heapq.heappush(queue, self._step_back(layer))
        while self.n_bytes > self.problem.budget_bytes and any(self.blocks):
            self.blocks[len(self.blocks) - 1 - self.blocks[::-1].index(True)] = False
        if self.n_bytes > self.problem.budget_bytes:
            self.head = False

    def grow(self, counts: list[int]) -> None:
        """Brings layers to these numbers of neurons while the limits are kept, what saves most a byte first; the last
        one as far as it goes."""
        sizes = [table.layer.sizes for table in self.tables]
        steps = []
        for layer, (before, after) in enumerate(zip(self.counts, counts, strict=True)):
            if self.blocks[layer] and after > before:
                n_bytes = max(sizes[layer].hot_bytes(after) - sizes[layer].hot_bytes(before), 1)
                steps.append(((self.seconds(layer, after) - self.seconds(layer, before)) / n_bytes, layer))
        left = self.problem.budget_bytes - self.n_bytes
        for _, layer in sorted(steps):
            table, before = self.tables[layer], self.counts[layer]
            allowed = min(counts[layer], before + self.neurons_left // table.unit * table.unit)
            after = table.largest_count(before, allowed, left)
            left -= sizes[layer].hot_bytes(after) - sizes[layer].hot_bytes(before)
            self.counts[layer] = after
            if after < counts[layer]:
                return

    def fill(self) -> None:
        """Uses what is left: blocks and the head, which every token reads whole, then neurons, the best a byte first.

        A step is taken even where it makes the expected time longer, which it does where the GPU is the slower side:
        the budget was given to be used.
        """
        while True:
            self.fill_blocks()
            self._fill_neurons()
            if not self._complete():
                return

    def _complete(self) -> bool:
        """Puts all other neurons of the blocks there on the GPU where that fits because no layer is split any more;
        whether that was so, and leaves room for more."""
        on_gpu = [i for i, block in enumerate(self.blocks) if block]
        whole = Choice(self.problem, self.tables, self.blocks, list(self.counts), self.head)
        for layer in on_gpu:
            whole.counts[layer] = self.tables[layer].n_neurons
        if not self.is_split or not whole.fits:
            return False
        self.counts = whole.counts
        return True

    def _fill_neurons(self) -> None:
        left = self.problem.budget_bytes - self.n_bytes
        growing = (i for i, table in enumerate(self.tables) if self.blocks[i] and self.counts[i] < table.n_neurons)
        queue = [self._step(layer) for layer in growing]
        heapq.heapify(queue)
        while queue:
            _, layer, count = heapq.heappop(queue)
            table, before = self.tables[layer], self.counts[layer]
            allowed = min(count, before + self.neurons_left // table.unit * table.unit)
            after = table.largest_count(before, allowed, left)
            left -= table.layer.sizes.hot_bytes(after) - table.layer.sizes.hot_bytes(before)
            self.counts[layer] = after
            # What did not fit now will not fit later either.
            if after == count and after < table.n_neurons:
                heapq.heappush(queue, self._step(layer))

    def fill_blocks(self) -> None:
        """Puts the head and blocks on the GPU while one fits, the one that saves most first."""
        while True:
            left = self.problem.budget_bytes - self.n_bytes
            # A block comes without neurons.
            splitting = 0 if self.is_split else self.problem.split_budget_bytes
            room = left - splitting
            fitting = [i for i, block in enumerate(self.blocks) if not block and self.problem.block_bytes(i) <= room]
            if not self.head and self.problem.head_budget_bytes <= left:
                fitting.append(len(self.blocks))
            if not fitting:
                return
            best = max(fitting, key=self._block_gain)
            if best == len(self.blocks):
                self.head = True
            else:
                self.blocks[best] = True

    def placement(self) -> Placement:
        """As data, ids ascending."""
        layers = (
            LayerPlacement(block, np.sort(table.order[: count if block else 0]).astype(np.int32))
            for block, count, table in zip(self.blocks, self.counts, self.tables, strict=True)
        )
        return Placement(tuple(layers), head_on_gpu=self.head)

    def _step(self, layer: int) -> tuple[float, int, int]:
        """(what the next group of a layer adds to the time a byte, layer, count after it)."""
        table, before = self.tables[layer], self.counts[layer]
        after = min(table.n_neurons, before + table.group)
        n_bytes = table.layer.sizes.neuron_bytes * (after - before)
        return (self.seconds(layer, after) - self.seconds(layer, before)) / n_bytes, layer, after

    def _step_back(self, layer: int) -> tuple[float, int, int]:
        """(what the last group of a layer saves a byte, layer, count without it)."""
        table, before = self.tables[layer], self.counts[layer]
        after = max(0, (before - 1) // table.group * table.group)
        n_bytes = table.layer.sizes.neuron_bytes * (before - after)
        return (self.seconds(layer, after) - self.seconds(layer, before)) / n_bytes, layer, after

    def _block_gain(self, which: int) -> tuple[float, int]:
        """Seconds that a block (or, beyond the last, the head) saves a byte; of equal ones the first layer wins."""
        problem = self.problem
        blocks = list(self.blocks)
        head = self.head
        before = side_changes(blocks, head)
        if which == len(blocks):
            saved = problem.head_seconds(on_gpu=False) - problem.head_seconds(on_gpu=True)
            n_bytes, head = problem.head_budget_bytes, True
        else:
            saved = problem.cpu_seconds(which) - self.seconds(which, 0)
            n_bytes, blocks[which] = problem.block_bytes(which), True
        saved -= problem.rates.change * (side_changes(blocks, head) - before)
        return saved / max(n_bytes, 1), -which
