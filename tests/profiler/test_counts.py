"""What is counted beside the model is what a run in predictor mode would take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from powerinfer_py import LLM
from powerinfer_py.placement.statistics.counts import ActivationCounts
from powerinfer_py.predictor.recall import RecallCounter
from powerinfer_py.profiler.counts import ActivationCounter
from powerinfer_py.profiler.forward import run_sequence

IDS = [1, *range(5, 40)]


@pytest.mark.parametrize("name", ["relu-llama", "relu-falcon.q4", "bamboo"])
@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_predictions_are_those_of_predictor_mode(
    name: str, kernels: str, fixtures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In layer 0, whose residual stream does not depend on the mode, neuron by neuron."""
    monkeypatch.setenv("POWERINFER_KERNELS", kernels)
    model = fixtures / f"{name}.powerinfer.gguf"
    taken: list[Tensor] = []

    def observe(layer: int, _x: Tensor, predicted: Tensor | None, _fired: Tensor) -> None:
        if layer == 0:
            assert predicted is not None
            taken.append(predicted)

    with LLM(model, sparsity="predictor", threads=1) as llm:
        for _ in run_sequence(llm.engine, IDS, observer=observe):
            pass
    mask = torch.cat(taken)
    assert 0 < int(mask.count_nonzero()) < mask.numel()
    with LLM(model, sparsity="exact", threads=1) as llm:
        config = llm.config
        counter = ActivationCounter(
            llm.engine, ActivationCounts.zeros(config.n_layer, config.n_ff, has_predictors=True)
        )
        recall = RecallCounter(llm.engine)
        for observer in (counter, recall):
            for _ in run_sequence(llm.engine, IDS, observer=observer):
                pass
    assert counter.counts.predicted is not None
    assert counter.counts.both is not None
    np.testing.assert_array_equal(counter.counts.predicted[0], mask.sum(dim=0).numpy())
    first = recall.layers[0]
    assert (first.neurons, first.predicted) == (mask.numel(), int(mask.count_nonzero()))
    assert (first.fired, first.both) == (counter.counts.fired[0].sum(), counter.counts.both[0].sum())
