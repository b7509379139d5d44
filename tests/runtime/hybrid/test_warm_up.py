"""Nothing is compiled after a device's memory was measured: the warm-up launches all that a step can launch.

Launches are noted instead of made, for the tiles of a GPU; what the models compute here means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_hybrid import CountedStandIn, some_hot
from helpers_launches import Compilation, Launches

from powerinfer_py import LLM
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.runtime.hybrid.device import Arrangement, Held, PromptRates

pytest.importorskip("triton")

ALWAYS, NEVER = PromptRates(1e30, 1.0, 1e30), PromptRates(0.0, 1.0, 0.0)
# One neuron, few, odd and even numbers, multiples of 16, on both sides of where rows of many begin, nearly all, all.
HOT = (0, 1, 37, 511, 512, 1024, 16, 500, 700, 1008, 1023)


class Noting(CountedStandIn):
    """Remembers what its warm-up launched."""

    def __init__(self, launches: Launches, arrangement: Arrangement) -> None:
        super().__init__("triton", arrangement=arrangement)
        self._warms_up = True
        self._launches = launches
        self.warmed: set[Compilation] = set()

    def context_bytes(self, warm_up: Callable[[Held], None]) -> int:
        n_bytes = super().context_bytes(warm_up)
        self.warmed, self._launches.compiled = self._launches.compiled, set()
        return n_bytes


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    from powerinfer_py.kernels.triton import launch

    found, row_config = Launches(), launch.row_config
    monkeypatch.setattr(launch, "run", found.run)
    monkeypatch.setattr(launch, "row_config", lambda *shape: row_config(*shape[:-1], torch.device("cuda")))
    # The models here have 1,024 neurons a layer, or fewer.
    monkeypatch.setattr("powerinfer_py.runtime.hybrid.warm_up._HOT_NEURONS", 250)
    return found


def run_tokens(llm: LLM, n_tokens: int, *, single: bool) -> None:
    """A prompt of so many tokens, or one token of each of so many sequences."""
    numbers, zeros = torch.arange(n_tokens), torch.zeros(n_tokens, dtype=torch.int64)
    llm.engine.forward(ForwardBatch(zeros, *((zeros, numbers) if single else (numbers, zeros))))


@pytest.mark.parametrize(
    ("name", "sparsity", "batch", "slots", "arrangement"),
    [
        ("relu-llama", "predictor", 70, 5, Arrangement.TWO_NODES),
        ("relu-llama.q4", "predictor", 512, 1, Arrangement.EAGER),
        ("relu-llama", "exact", 33, 2, Arrangement.EAGER),
        ("bamboo.q4", "exact", 20, 3, Arrangement.EAGER),
        ("relu-falcon", "predictor", 9, 1, Arrangement.EAGER),
        ("relu-falcon.q4", "dense", 64, 7, Arrangement.EAGER),
        ("opt", "predictor", 40, 2, Arrangement.FLAGS),
        ("arcee", "dense", 70, 18, Arrangement.EAGER),
    ],
)
def test_a_step_launches_nothing_that_the_warm_up_has_not(
    models: dict[str, Path],
    launches: Launches,
    name: str,
    sparsity: str,
    batch: int,
    slots: int,
    arrangement: Arrangement,
) -> None:
    seen: set[Compilation] = set()
    first, n_layer, n_shared = 0, 1, 1
    while first < min(len(HOT), 3 * n_layer):

        def choose(sizes: object, _fixed: object, _left: int, first: int = first) -> Placement:
            n_ff = sizes.config.n_ff  # type: ignore[attr-defined]
            counts = [min(n_ff, HOT[(first + i) % len(HOT)]) for i in range(sizes.config.n_layer)]  # type: ignore[attr-defined]
            layers = tuple(LayerPlacement(True, some_hot(n_ff, n / n_ff, i)) for i, n in enumerate(counts))
            return Placement(layers, head_on_gpu=True)

        device = Noting(launches, arrangement)
        options = {"threads": 1, "context_length": 96, "max_batch": slots, "batch_size": batch, "sparsity": sparsity}
        with LLM(models[name], vram_budget=1.0, device=device, choose=choose, **options) as llm:  # type: ignore[arg-type]
            assert llm.engine.hybrid is not None
            n_layer, n_shared = llm.config.n_layer, llm.config.n_head // llm.config.n_head_kv
            for rates in (NEVER, ALWAYS):
                llm.engine.hybrid.use_prompt_rates(rates)
                for n_tokens in (1, 2, 4, 5, 16, 17, 32, 33, 64, 96):
                    run_tokens(llm, n_tokens, single=False)
                for n_tokens in range(1, slots + 1):
                    run_tokens(llm, n_tokens, single=True)
        seen |= launches.compiled
        launches.compiled = set()
        unknown = sorted(map(str, seen - device.warmed))
        first += n_layer
        assert not unknown, f"{len(unknown)} compilations at use, the first: {unknown[0]}"
    assert len(device.warmed) > 15
    assert (n_shared > 1) == ("group_kernel" in {compilation[0] for compilation in device.warmed})
    assert np.mean([compilation in seen for compilation in device.warmed]) > 0.5
