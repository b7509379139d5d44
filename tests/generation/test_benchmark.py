"""The benchmark runs what it says, counts what ran, and adds nothing to what is timed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers_logits import FIXTURES

from powerinfer_py import LLM
from powerinfer_py.errors import ContextError, OptionError
from powerinfer_py.generation import benchmark
from powerinfer_py.generation.benchmark import BenchmarkTest, Phase, measure
from powerinfer_py.gguf import TensorInfo, open_gguf
from powerinfer_py.models.batch import ForwardBatch

MODEL = FIXTURES / "relu-llama.q4.powerinfer.gguf"


@pytest.fixture
def llm() -> Iterator[LLM]:
    with LLM(MODEL, threads=1, context_length=64, max_batch=1, batch_size=16) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def tensors() -> dict[str, TensorInfo]:
    with open_gguf(MODEL) as file:
        return dict(file.tensors)


@pytest.fixture
def forwards(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """First position and number of tokens of each forward that runs."""
    seen: list[tuple[int, int]] = []
    forward = llm.engine.forward

    def record(batch: ForwardBatch, *arguments: object, **options: object) -> object:
        seen.append((int(batch.positions[0]), len(batch)))
        return forward(batch, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(llm.engine, "forward", record)
    return seen


def test_names_are_llama_benchs() -> None:
    assert BenchmarkTest(Phase.PROMPT, 512).name == "pp512"
    assert BenchmarkTest(Phase.DECODE, 128, 1024).name == "tg128 @ d1024"


@pytest.mark.parametrize(("tokens", "depth"), [(0, 0), (1, -1)])
def test_tests_of_nothing_are_refused(tokens: int, depth: int) -> None:
    with pytest.raises(OptionError):
        BenchmarkTest(Phase.DECODE, tokens, depth)


def test_a_prompt_runs_behind_its_depth_each_time(
    llm: LLM, tensors: dict[str, TensorInfo], forwards: list[tuple[int, int]]
) -> None:
    result = measure(llm, tensors, BenchmarkTest(Phase.PROMPT, 20, 10), repeats=3)
    # The context once; then warm-up and repetitions, each in chunks of 16.
    assert forwards == [(0, 10)] + [(10, 16), (26, 4)] * 4
    assert len(result.seconds) == 3
    assert result.rates == [20 / seconds for seconds in result.seconds]
    assert int(llm.engine.activity.neurons[0]) == 3 * 20 * llm.config.n_ff


def test_a_decode_runs_behind_its_depth_each_time(
    llm: LLM, tensors: dict[str, TensorInfo], forwards: list[tuple[int, int]]
) -> None:
    result = measure(llm, tensors, BenchmarkTest(Phase.DECODE, 5, 12), repeats=2, warm_up=False)
    assert forwards == [(0, 12)] + [(position, 1) for position in range(11, 17)] * 2
    assert len(result.seconds) == 2
    assert int(llm.engine.activity.neurons[0]) == 2 * 6 * llm.config.n_ff
    assert result.share_computed == llm.engine.activity.share_computed


def test_warming_up_is_not_counted(llm: LLM, tensors: dict[str, TensorInfo], forwards: list[tuple[int, int]]) -> None:
    measure(llm, tensors, BenchmarkTest(Phase.DECODE, 20), repeats=1)
    assert len(forwards) == 1 + (1 + benchmark.WARM_UP_TOKENS) + 21
    assert llm.stats.decode_tokens == 20


def test_bytes_count_the_keys_and_values_a_token_attends_to(llm: LLM, tensors: dict[str, TensorInfo]) -> None:
    config = llm.config
    position = 2 * config.n_layer * config.n_head_kv * (config.head_dim + config.head_dim_v)
    assert benchmark.cache_position_bytes(llm) == position
    decode = measure(llm, tensors, BenchmarkTest(Phase.DECODE, 3, 10), warm_up=False)
    assert decode.bytes.cache == position * (11 + 12 + 13) / 3
    prompt = measure(llm, tensors, BenchmarkTest(Phase.PROMPT, 20, 10), warm_up=False)
    assert prompt.bytes.cache == position * (26 + 30) / 20


def test_figures_as_json(llm: LLM, tensors: dict[str, TensorInfo]) -> None:
    result = measure(llm, tensors, BenchmarkTest(Phase.DECODE, 4), repeats=3)
    figures = result.to_dict()
    rate = figures["tokens_per_s"]
    assert rate["min"] <= rate["median"] <= rate["max"]
    assert rate["median"] == sorted(result.rates)[1]
    assert figures["gb_per_s"] == pytest.approx(figures["bytes_per_token"]["total"] * rate["median"] / 1e9)
    assert figures["gpu_share"] + figures["cpu_share"] == 1
    assert 0 < figures["share_of_rows"] < figures["share_computed"] < 1


def test_what_cannot_be_measured_is_refused(tensors: dict[str, TensorInfo]) -> None:
    with LLM(MODEL, threads=1, context_length=16, max_batch=1) as short:
        with pytest.raises(ContextError):
            measure(short, tensors, BenchmarkTest(Phase.PROMPT, 17))
        with pytest.raises(AssertionError, match="expected 40"):
            measure(short, tensors, BenchmarkTest(Phase.DECODE, 40), warm_up=False)
    with LLM(MODEL, threads=1, max_batch=2) as several, pytest.raises(OptionError, match="max_batch=1"):
        measure(several, tensors, BenchmarkTest(Phase.DECODE, 1))
