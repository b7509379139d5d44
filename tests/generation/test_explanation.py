"""An explanation agrees with what the kernels counted, token by token and layer by layer, and changes no result."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from helpers_hybrid import CountedStandIn, split
from helpers_logits import FIXTURES

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.generation.explanation import Explanation, Phase
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.sizes import ModelSizes

MODEL = FIXTURES / "relu-llama.q4.powerinfer.gguf"
PARAMS = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
PROMPT = [300, 400, 500, 100, 200]


@pytest.fixture(params=["predictor", "exact"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with LLM(MODEL, sparsity=request.param, threads=1, context_length=64) as loaded:
        yield loaded


def explained(llm: LLM, prompts: list[list[int]], params: SamplingParams = PARAMS) -> Explanation:
    explanation = llm.explain()
    llm.generate(prompts, params, explanation=explanation)
    return explanation


def test_sums_are_what_the_kernels_counted(llm: LLM) -> None:
    explanation = explained(llm, [PROMPT])
    activity = llm.engine.activity
    phases = explanation.phases
    assert (phases[Phase.PROMPT].tokens, phases[Phase.DECODE].tokens) == (5, 4)
    assert (sum(counts.fired for counts in phases.values()) == activity.fired).all()
    assert (sum(counts.computed for counts in phases.values()) == activity.first).all()
    assert (explanation.fired_by_token.sum(axis=0) == activity.fired).all()
    assert (explanation.fired.sum(axis=1) == activity.fired).all()
    assert activity.fired.min() > 0


def test_a_token_fires_what_it_fires_alone(llm: LLM) -> None:
    """The neurons of a prompt's token do not depend on its company, so each column is that of the token run alone."""
    together = explained(llm, [PROMPT]).fired_by_token[:5]
    llm.engine.cache.truncate(0, 0)
    alone = [
        explained(llm, [PROMPT[:n]], SamplingParams(max_tokens=0)).fired_by_token[-1] for n in range(1, len(PROMPT) + 1)
    ]
    assert (together == np.stack(alone)).all()


def test_phases_and_their_tokens(llm: LLM) -> None:
    explanation = explained(llm, [PROMPT])
    assert explanation.token_phases == [Phase.PROMPT] * 5 + [Phase.DECODE] * 4
    assert explanation.main_phase is Phase.DECODE
    llm.engine.cache.truncate(0, 0)
    only_prompt = explained(llm, [PROMPT], SamplingParams(max_tokens=0))
    assert only_prompt.main_phase is Phase.PROMPT
    assert only_prompt.to_dict()["decode"]["tokens"] == 0


def test_shares_and_times_of_a_layer(llm: LLM) -> None:
    explanation = explained(llm, [PROMPT])
    counts = explanation.phases[Phase.DECODE]
    for row in explanation.layers(Phase.DECODE):
        layer = row["layer"]
        assert row["fired"] == counts.fired[layer] / (4 * explanation.n_ff)
        assert row["computed"] == counts.computed[layer] / 4 / 1024
        assert (row["gpu_share"], row["cpu_share"]) == (0, 1)
        assert 0 < row["fired"] <= row["computed"] <= 1
        assert 0 < row["seconds_per_token"] < 1
    assert len(explanation.to_dict()["prompt"]["layers"]) == llm.config.n_layer


def test_several_sequences_share_a_forward(llm: LLM) -> None:
    explanation = explained(llm, [PROMPT, PROMPT[::-1]])
    n_tokens = sum(counts.tokens for counts in explanation.phases.values())
    assert explanation.fired_by_token.shape == (n_tokens, llm.config.n_layer)
    assert (explanation.fired_by_token.sum(axis=0) == llm.engine.activity.fired).all()


def test_watching_changes_nothing(llm: LLM) -> None:
    plain = llm.generate([PROMPT], PARAMS)
    llm.engine.cache.truncate(0, 0)
    pieces = list(llm.stream(PROMPT, PARAMS, explanation=llm.explain()))
    assert "".join(pieces) == plain[0].text
    assert llm.last is not None and llm.last.token_ids == plain[0].token_ids


def test_a_second_call_adds_to_the_first(llm: LLM) -> None:
    explanation = llm.explain()
    for _ in range(2):
        llm.engine.cache.truncate(0, 0)
        llm.generate([PROMPT], PARAMS, explanation=explanation)
    assert explanation.phases[Phase.PROMPT].tokens == 10
    assert (explanation.fired_by_token[:9] == explanation.fired_by_token[9:]).all()


def test_a_device_has_its_share_of_a_layer() -> None:
    """With a stand-in for a GPU that has two thirds of the blocks and some of their neurons; prompts come in chunks."""

    def choose(sizes: ModelSizes, _fixed: object, _left: int) -> Placement:
        return split(sizes.config, 0.4, blocks=[layer % 3 > 0 for layer in range(sizes.config.n_layer)])

    loading = {"sparsity": "predictor", "threads": 1, "context_length": 64, "batch_size": 3}
    model = FIXTURES / "relu-llama.powerinfer.gguf"
    with LLM(model, **loading) as plain:
        expected = explained(plain, [PROMPT])
    with LLM(model, **loading, vram_budget=1.0, device=CountedStandIn(), choose=choose) as llm:
        explanation = explained(llm, [PROMPT])
        activity = llm.engine.activity
    for phase in Phase:
        for row in explanation.layers(phase):
            assert row["gpu_share"] == 0 if row["layer"] % 3 == 0 else 0 < row["gpu_share"] < 1
    assert sum(counts.on_device.sum() for counts in explanation.phases.values()) == activity.on_device.sum()
    assert (sum(counts.computed for counts in explanation.phases.values()) == activity.first).all()
    # A neuron on the threshold may be named on one side and not on the other.
    assert abs(explanation.fired_by_token[:5] - expected.fired_by_token[:5]).mean() < 1
