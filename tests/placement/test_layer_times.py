"""Rates from the times of single layers: a simulated machine's whole models then take what is expected of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from helpers_placement import layer_problem

from powerinfer_py.config import Sparsity
from powerinfer_py.placement.layer_times import LayerSample, LayerTimes, rates_from
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.placement.problem import LayerProblem, Problem, expected_seconds

N_LAYER, N_FF = 32, 1024
HEAD = 102_000_000


@dataclass(frozen=True)
class Machine:
    """Speeds, bytes a second, and what is paid whatever is read: by what a model's layers really take here.

    A hand-over costs `wake_s` beside the hot kernels, and `join_s` in their stream.
    """

    gpu: float
    gpu_rows: float
    cpu: float
    cpu_rows: float
    block_s: float
    rows_s: float
    wake_s: float
    join_s: float
    step_s: float
    noise: float = 0.0

    def block(self, n_bytes: float) -> float:
        return self.block_s + n_bytes / self.gpu

    def hot(self, n_bytes: float) -> float:
        return self.rows_s + n_bytes / self.gpu_rows if n_bytes else 0.0

    def neurons(self, hot: float, cold: float) -> float:
        """After the block; cold: bytes, 0 where nothing is handed over."""
        if not cold:
            return self.hot(hot)
        return max(self.hot(hot), self.wake_s + cold / self.cpu_rows) + self.join_s

    def on_cpu(self, block: float, rows: float) -> float:
        return block / self.cpu + rows / self.cpu_rows

    def times(self, problem: Problem, n_hot: int, seed: int) -> LayerTimes:
        """What a probe finds of a layer, every time off by up to `noise`."""
        rng = np.random.default_rng(seed)

        def seen(seconds: float) -> float:
            return seconds * (1 + rng.uniform(-self.noise, self.noise))

        block, work = problem.block_read_bytes(0), problem.work[0]
        # A probe takes neurons as they stand in the file, which fire alike.
        everything = work.sum()
        full = everything * n_hot / N_FF
        few, most = full / 4, full * 3 / 4
        alone = self.block(block)
        return LayerTimes(
            step_s=seen(self.step_s),
            product_bytes_per_s=seen(self.gpu),
            block_bytes=block,
            block_s=seen(alone),
            hot=tuple(LayerSample(seen(alone + self.neurons(n, 0.0)), n) for n in (full, few)),
            split=tuple(
                LayerSample(seen(alone + self.neurons(n, everything - n)), n, everything - n) for n in (0.0, most)
            ),
            host=LayerSample(seen(self.on_cpu(block, everything)), 0.0, everything),
        )

    def token(self, problem: Problem, placement: Placement) -> float:
        """What a token of the whole model takes."""
        seconds = HEAD / (self.gpu if placement.head_on_gpu else self.cpu)
        side = False
        for layer, placed in enumerate(placement.layers):
            work, block = problem.work[layer], problem.block_read_bytes(layer)
            hot = float(work[placed.hot].sum())
            cold = float(work.sum()) - hot if placed.hot.size < work.size else 0.0
            there = self.block(block) + self.neurons(hot, cold)
            seconds += there if placed.block_on_gpu else self.on_cpu(block, float(work.sum()))
            seconds += self.step_s / 2 if side != placed.block_on_gpu else 0.0
            side = placed.block_on_gpu
        sides = int(side != placement.head_on_gpu) + int(placement.head_on_gpu)
        return seconds + sides * self.step_s / 2


# Kernels bound by launches beside a CPU of a server, and by the memory of a desktop's two sides.
SERVER = Machine(3e12, 4e11, 6e10, 2e10, 8e-5, 4e-5, 5e-6, 2e-5, 1.5e-4)
DESKTOP = Machine(3e11, 2.2e11, 4e10, 2.5e10, 2e-5, 1e-5, 4e-6, 1e-5, 6e-5)


def problem_of(mode: Sparsity, density: float = 0.1) -> Problem:
    """A model of the size of a 7B in Q4_0, in fewer and larger neurons; the frequent ones first."""
    rng = np.random.default_rng(3)
    layers = []
    for _ in range(N_LAYER):
        weights = rng.random(N_FF) ** 3
        fired = np.sort(np.minimum(1.0, weights / weights.mean() * density))[::-1]
        layer = layer_problem(fired, block=37_000_000, row=24_576, predictor=8_500_000, kv=4 << 20)
        layers.append(LayerProblem(layer.sizes, layer.fired))
    anything = rates_from(SERVER.times(Problem(tuple(layers), mode, None, 0), N_FF, 0), "")  # type: ignore[arg-type]
    return Problem(tuple(layers), mode, anything, 1 << 40, head_bytes=HEAD)


def placements() -> list[Placement]:
    def first(n: int, block: bool = True) -> LayerPlacement:
        return LayerPlacement(block, np.arange(n, dtype=np.int32))

    split = [first(n) for n in (N_FF, N_FF * 3 // 4, N_FF // 4, 40, 0)] + [first(0, False)]
    wholly = [Placement((layer,) * N_LAYER, head) for layer in split for head in (True, False)]
    return [*wholly, Placement(tuple(split[i % len(split)] for i in range(N_LAYER)), True)]


@pytest.mark.parametrize("mode", [Sparsity.PREDICTOR, Sparsity.EXACT, Sparsity.DENSE])
@pytest.mark.parametrize("machine", [SERVER, DESKTOP])
def test_a_whole_model_takes_what_its_layers_promise(machine: Machine, mode: Sparsity) -> None:
    problem = problem_of(mode)
    for n_hot in (N_FF, N_FF // 2):
        problem = replace(problem, rates=rates_from(machine.times(problem, n_hot, 0), "measured"))
        for placement in placements():
            taken = machine.token(problem, placement)
            assert expected_seconds(problem, placement) == pytest.approx(taken, rel=0.05)


@pytest.mark.parametrize("machine", [SERVER, DESKTOP])
def test_times_that_are_off_by_three_per_cent(machine: Machine) -> None:
    noisy, problem = replace(machine, noise=0.03), problem_of(Sparsity.PREDICTOR)
    for seed in range(20):
        problem = replace(problem, rates=rates_from(noisy.times(problem, N_FF, seed), "measured"))
        for placement in placements():
            taken = machine.token(problem, placement)
            assert expected_seconds(problem, placement) == pytest.approx(taken, rel=0.15)


SOME = LayerTimes(
    step_s=1e-4,
    product_bytes_per_s=2e10,
    block_bytes=1e6,
    block_s=1e-4,
    hot=(LayerSample(2e-4, 2e6), LayerSample(1.6e-4, 1e6)),
    split=(LayerSample(1.1e-3, 0.0, 2e6), LayerSample(6e-4, 1e6, 1e6)),
    host=LayerSample(2e-3, 0.0, 2e6),
)


def test_rates_are_those_of_the_samples() -> None:
    rates = rates_from(SOME, "measured")
    assert (rates.gpu_bytes_per_s, rates.change_s, rates.source) == (2e10, 5e-5, "measured")
    assert rates.layer_s == pytest.approx(5e-5)
    # Rows are not taken to be read faster than whole matrices.
    assert rates.gpu_rows == pytest.approx(2e10)
    assert rates.rows_s == pytest.approx(0.0, abs=1e-9)
    assert rates.cpu_rows == pytest.approx(2e9)
    assert rates.synchronise_s == pytest.approx(0.0, abs=1e-9)
    assert rates.cpu_bytes_per_s == pytest.approx(1e6 / (2e-3 - 1e-3))


def test_a_product_that_is_slower_than_the_blocks_is_not_believed_of_them() -> None:
    rates = rates_from(replace(SOME, product_bytes_per_s=1e9), "measured")
    assert (rates.gpu_bytes_per_s, rates.layer_s) == (pytest.approx(1e10), 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"hot": ()},
        {"hot": (LayerSample(1e-9, 0.0), LayerSample(1e-9, 0.0))},
        {"hot": (LayerSample(1e-9, 1e6), LayerSample(1.5e-4, 1e6))},
        {"hot": (LayerSample(1e-9, 2e6), LayerSample(1.6e-4, 1e6))},
        {"split": ()},
        {"split": (LayerSample(1e-9, 0.0, 0.0),)},
        {"split": (LayerSample(2e-4, 0.0, 2e6), LayerSample(3e-4, 1e6, 1e6))},
        {"host": LayerSample(1e-9, 0.0, 2e6)},
        {"host": LayerSample(1e-3, 0.0, 0.0)},
        {"block_s": 1e-9},
        {"product_bytes_per_s": 1e15},
        {"product_bytes_per_s": None},
    ],
)
def test_noise_and_silence_give_rates_that_can_be(change: dict[str, object]) -> None:
    rates = rates_from(replace(SOME, **change), "measured")  # type: ignore[arg-type]
    speeds = (rates.gpu_bytes_per_s, rates.gpu_rows, rates.cpu_bytes_per_s, rates.cpu_rows)
    assert np.isfinite(speeds).all()
    assert min(speeds) > 0
    assert min(rates.synchronise_s, rates.layer_s, rates.rows_s, rates.change) >= 0
