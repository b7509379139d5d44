from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_predictable import N_EMBD, N_FF, write_predictable

from powerinfer_py import LLM
from powerinfer_py.convert.checkpoint_source import CheckpointOptions, plan_checkpoint
from powerinfer_py.convert.gguf_source import plan_gguf
from powerinfer_py.convert.output import write_model
from powerinfer_py.errors import ModelError, OptionError
from powerinfer_py.gguf import GGMLType, open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.predictor.first_rows import first_rows, read_first_rows
from powerinfer_py.predictor.recall import RecallCounter
from powerinfer_py.predictor.row_source import RowSource, source_of_file, source_of_plan
from powerinfer_py.predictor.untrained import SvdPredictors

FIXTURES = Path(__file__).parents[1] / "fixtures"
IDS = np.random.default_rng(5).integers(3, 512, 200).tolist()
GIVEN = {"outtype": None, "dense": False, "activation": None, "fatrelu_threshold": None}


def source_of(model: Path) -> RowSource:
    file = open_gguf(model)
    return source_of_file(file, read_config(file))


def recalls(model: Path, made: SvdPredictors, path: Path) -> list[tuple[float, float]]:
    """Recall and predicted share of each layer of the converted model."""
    write_model(path, *plan_gguf(model, None, **GIVEN, predictors=made))  # type: ignore[arg-type]
    with LLM(path, sparsity="exact") as llm:
        counter = RecallCounter(llm.engine)
        llm.logits(IDS, observer=counter)
    return [(layer.recall, layer.predicted / layer.neurons) for layer in counter.layers]


def test_at_full_rank_it_names_who_fires(tmp_path: Path) -> None:
    model = write_predictable(tmp_path / "model.gguf")
    made = SvdPredictors(source_of(model), hidden_units=2 * N_EMBD, margin=0.0)
    with LLM(model, sparsity="exact") as llm:
        llm.logits(IDS)
        fired = llm.engine.activity.fired / llm.engine.activity.neurons
    for (recall, share), truth in zip(recalls(model, made, tmp_path / "with.gguf"), fired, strict=True):
        assert recall > 0.998
        assert share == pytest.approx(truth, abs=0.002)


def test_budget_decides_the_size(tmp_path: Path) -> None:
    model = write_predictable(tmp_path / "model.gguf")
    made = SvdPredictors(source_of(model), budget=0.1)
    assert made.hidden_units % 8 == 0
    total = 2 * 2 * made.hidden_units * (N_EMBD + N_FF)
    assert 0.6 * 0.1 < total / model.stat().st_size <= 0.1
    assert sum(tensor.n_bytes for tensor in made.tensors(lambda _cols: GGMLType.F16, lambda *_: None)) == total  # type: ignore[arg-type, return-value]
    assert all(recall > 0.5 for recall, _ in recalls(model, made, tmp_path / "with.gguf"))


def test_refused(tmp_path: Path) -> None:
    source = source_of(write_predictable(tmp_path / "model.gguf"))
    for units in (3, 0, 4 * N_EMBD):
        with pytest.raises(OptionError, match="expected an even number"):
            SvdPredictors(source, hidden_units=units)
    for budget in (0.0, 1.5, float("nan")):
        with pytest.raises(OptionError, match="share of the model's bytes"):
            SvdPredictors(source, budget=budget)
    with pytest.raises(ModelError, match="nothing to predict"):
        SvdPredictors(source_of(write_predictable(tmp_path / "dense.gguf", magic="GGUF")))


@pytest.mark.parametrize("name", ["relu-llama", "bamboo", "relu-falcon", "opt"])
def test_a_planned_checkpoint_has_the_rows_of_its_file(name: str, tmp_path: Path) -> None:
    _, metadata, tensors = plan_checkpoint(FIXTURES / name, None, CheckpointOptions("f32"))
    write_model(tmp_path / "model.gguf", "PWRI", metadata, tensors)
    planned = source_of_plan(metadata, tensors, 0)
    with open_gguf(tmp_path / "model.gguf") as file:
        config = read_config(file)
        for field in ("architecture", "n_layer", "n_embd", "n_ff", "activation", "fatrelu_threshold"):
            assert getattr(planned, field) == getattr(config, field), field
        expected = read_first_rows(file, config, planned.n_layer - 1)
    actual = first_rows(planned, planned.n_layer - 1)
    assert actual.rows.equal(expected.rows)
    assert actual.offsets.equal(expected.offsets)
    assert actual.is_linear == expected.is_linear
    assert (actual.second is None) == (expected.second is None)
    with pytest.raises(ModelError, match="missing"):
        planned.require("blk.99.ffn_up.weight", (1, 1))
    with pytest.raises(ModelError, match="expected \\(1, 1\\)"):
        planned.read("blk.0.ffn_up.weight", (1, 1))
