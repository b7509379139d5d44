"""A model split between the CPU and a stand-in gives the logits of the CPU alone, however it is split."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_hybrid import CAPTURED, CountedStandIn, bound_of, run_sequences, sequences_of, split
from helpers_logits import TOKENS, nmse

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.config import ModelConfig
from powerinfer_py.errors import ContextError
from powerinfer_py.models.activity import Activity
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.sizes import ModelSizes
from powerinfer_py.runtime import kv_cache
from powerinfer_py.runtime.hybrid.device import Arrangement
from powerinfer_py.runtime.hybrid.model import Chooser, given
from powerinfer_py.runtime.hybrid.reservations import FixedBytes

MODES = ["predictor", "exact", "dense"]
SPARSE = ["relu-llama", "relu-llama.q4", "bamboo.q4", "relu-falcon", "opt", "arcee"]
N_SEQUENCES = 3


def loaded(path: Path, sparsity: str = "auto", **options: Any) -> LLM:
    return LLM(path, sparsity=sparsity, threads=2, **{"max_batch": N_SEQUENCES, "context_length": 32, **options})


def choosing(share: float, **how: Any) -> Chooser:
    def choose(sizes: ModelSizes, _fixed: FixedBytes, _left: int) -> Placement:
        return split(sizes.config, share, **how)

    return choose


def hybrid(
    path: Path,
    sparsity: str,
    choose: Chooser,
    kernels: str = "native",
    arrangement: Arrangement = Arrangement.EAGER,
    **options: Any,
) -> LLM:
    device = CountedStandIn(kernels, arrangement=arrangement)
    llm = loaded(path, sparsity, vram_budget=1.0, device=device, choose=choose, **options)
    assert llm.engine.hybrid is not None
    device.watch(llm.engine.hybrid.plan.ledger)
    return llm


def logits_of(llm: LLM, n_sequences: int = N_SEQUENCES) -> np.ndarray:
    with llm:
        return run_sequences(llm.engine, sequences_of(n_sequences, llm.config.n_vocab))


@pytest.mark.parametrize("sparsity", MODES)
@pytest.mark.parametrize("name", SPARSE)
def test_every_share_of_neurons(models: dict[str, Path], name: str, sparsity: str) -> None:
    expected = logits_of(loaded(models[name], sparsity))
    for share in (0.0, 0.02, 0.5, 1.0):
        actual = logits_of(hybrid(models[name], sparsity, choosing(share)))
        assert nmse(actual, expected) < bound_of(name, sparsity)


@pytest.mark.parametrize("name", ["relu-llama", "bamboo.q4", "relu-falcon", "opt"])
def test_blocks_on_either_side(models: dict[str, Path], name: str) -> None:
    """Sides change between layers, at the beginning and at the end."""
    with loaded(models[name]) as llm:
        n_layer = llm.config.n_layer
        sparsity = str(llm.sparsity)
        expected = run_sequences(llm.engine, sequences_of(N_SEQUENCES))
    for period, first in ((2, 0), (2, 1), (3, 1), (n_layer, 0), (99, 1)):
        blocks = [(i + first) % period == 0 for i in range(n_layer)]
        for head in (False, True):
            actual = logits_of(hybrid(models[name], "auto", choosing(0.3, blocks=blocks, head=head)))
            assert nmse(actual, expected) < bound_of(name, sparsity)


@pytest.mark.parametrize("n_sequences", [1, 2, 7])
@pytest.mark.parametrize("name", ["relu-llama.q4", "relu-falcon"])
def test_sequences_together(models: dict[str, Path], name: str, n_sequences: int) -> None:
    expected = logits_of(loaded(models[name], max_batch=7), n_sequences)
    actual = logits_of(hybrid(models[name], "auto", choosing(0.4), max_batch=7), n_sequences)
    assert nmse(actual, expected) < bound_of(name, "predictor")


@pytest.mark.parametrize("name", ["relu-llama", "bamboo"])
def test_masks_held_fixed(models: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every neuron named: nothing can flip, and the bounds are those of rounding alone."""
    monkeypatch.setenv("LLAMA_SPARSE_PRED_THRESHOLD", "-1000000")
    for path, bound in ((models[name], 1e-6), (models[f"{name}.q4"], 5e-4)):
        expected = logits_of(loaded(path, "predictor"))
        assert nmse(logits_of(hybrid(path, "predictor", choosing(0.3))), expected) < bound


@pytest.mark.parametrize("sparsity", ["exact", "dense"])
def test_down_projections_that_are_no_neuron_a_row(models: dict[str, Path], sparsity: str) -> None:
    expected = logits_of(loaded(models["opt.gguf"], sparsity))
    for share in (0.0, 0.25, 1.0):
        actual = logits_of(hybrid(models["opt.gguf"], sparsity, choosing(share)))
        assert nmse(actual, expected) < 1e-6


@pytest.mark.parametrize("name", ["silu", "silu.k"])
def test_dense_models_split_between_quantisation_blocks(models: dict[str, Path], name: str) -> None:
    expected = logits_of(loaded(models[name]))

    def halves(sizes: ModelSizes, _fixed: FixedBytes, _left: int) -> Placement:
        from powerinfer_py.placement.placement import LayerPlacement

        multiple = sizes.layers[0].neuron_multiple
        n_ff = sizes.config.n_ff
        later = np.arange(n_ff // 2 // multiple * multiple, n_ff, dtype=np.int32)
        return Placement(tuple(LayerPlacement(True, later) for _ in sizes.layers), head_on_gpu=True)

    for choose in (halves, choosing(0.0), choosing(1.0)):
        actual = logits_of(hybrid(models[name], "dense", choose))
        assert nmse(actual, expected) < bound_of(name, "dense")
    with pytest.raises(ValueError, match="blocks of"):
        hybrid(models[name], "dense", choosing(0.3))


@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_the_kernels_of_the_stand_in(models: dict[str, Path], kernels: str) -> None:
    expected = logits_of(loaded(models["bamboo"]))
    actual = logits_of(hybrid(models["bamboo"], "auto", choosing(0.5), kernels))
    assert nmse(actual, expected) < bound_of("bamboo", "predictor")


def test_the_cache_may_hold_blocks(models: dict[str, Path]) -> None:
    types = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
    expected = logits_of(loaded(models["bamboo"], "dense", **types))
    assert nmse(logits_of(hybrid(models["bamboo"], "dense", choosing(0.5), **types)), expected) < 1e-6


@pytest.mark.parametrize("arrangement", CAPTURED)
@pytest.mark.parametrize("name", ["relu-llama", "bamboo.q4", "relu-falcon"])
def test_captured_steps_are_the_eager_ones(models: dict[str, Path], name: str, arrangement: Arrangement) -> None:
    """Bit for bit, the second replay as well as the first; layers on the CPU lie between captured stretches."""
    blocks = [i % 5 != 3 for i in range(12)] if name == "relu-llama" else [True, True]
    for share in (0.4, 1.0):
        choose = choosing(share, blocks=blocks)
        with hybrid(models[name], "auto", choose) as llm:
            expected = run_sequences(llm.engine, sequences_of(3), n_single=4)
            counts = {key: value for key, value in llm.engine.activity.to_dict().items() if key != "predictor_s"}
        with hybrid(models[name], "auto", choose, arrangement=arrangement) as llm:
            assert np.array_equal(run_sequences(llm.engine, sequences_of(3), n_single=4), expected)
            assert llm.engine.hybrid is not None
            actual = llm.engine.activity.to_dict()
            assert actual["predictor_s"] > 0
            assert {key: actual[key] for key in counts} == counts
            captured = llm.engine.hybrid.executor.captured
            assert len(captured) == (3 if name == "relu-llama" else 1)


@pytest.mark.parametrize("arrangement", CAPTURED)
def test_after_a_step_that_failed_half_way_the_next_is_right(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, arrangement: Arrangement
) -> None:
    """Of two split layers the first fails on the device, so that the second is never begun, or the second."""
    with hybrid(models["bamboo"], "auto", choosing(0.5), arrangement=arrangement) as llm:
        assert llm.engine.hybrid is not None
        step, tokens = llm.engine.hybrid.executor.step, [_token(7, place) for place in range(4)]
        run, calls = step.kernels.add_feed_forward_part, []

        def all_tokens() -> tuple[list[torch.Tensor], dict[str, Any]]:
            llm.engine.activity = Activity(len(llm.engine.layers), gated=True)
            logits = [llm.engine.forward(token) for token in tokens]
            counts = llm.engine.activity.to_dict()
            return logits, {key: counts[key] for key in counts if key != "predictor_s"}

        def failing(*arguments: Any, **named: Any) -> Any:
            calls.append(None)
            if len(calls) == failing_call:
                raise RuntimeError("the device has failed")
            return run(*arguments, **named)

        expected, counts = all_tokens()
        for again in range(4):
            calls.clear()
            failing_call = 1 + again % 2
            monkeypatch.setattr(step.kernels, "add_feed_forward_part", failing)
            with pytest.raises(RuntimeError, match="device has failed"):
                llm.engine.forward(tokens[again])
            monkeypatch.setattr(step.kernels, "add_feed_forward_part", run)
            actual, actual_counts = all_tokens()
            assert all(map(torch.equal, actual, expected))
            assert actual_counts == counts


def test_prompt_chunks_that_do_not_fit_the_buffers_at_once(models: dict[str, Path]) -> None:
    """A forward of more tokens than the buffers hold is run in parts."""
    expected = logits_of(loaded(models["bamboo"]))
    llm = hybrid(models["bamboo"], "auto", choosing(0.5), batch_size=5)
    assert llm.engine.batch_size == 5
    assert nmse(logits_of(llm), expected) < bound_of("bamboo", "predictor")


def test_a_whole_model_on_the_device_makes_the_host_wait_once(models: dict[str, Path]) -> None:
    llm = hybrid(models["relu-llama"], "auto", choosing(1.0))
    assert llm.engine.hybrid is not None
    device = llm.engine.hybrid.plan.device
    assert isinstance(device, CountedStandIn)
    assert llm.engine.hybrid.executor.cold_side is None
    with llm:
        llm.logits(TOKENS[:3])
        before = device.n_synchronised
        llm.engine.forward(_token(5, 3))
        assert device.n_synchronised == before + 1
        assert llm.engine.activity.share_on_device == 1.0


def test_a_layer_without_cold_neurons_never_waits_for_the_cpu(models: dict[str, Path]) -> None:
    """Layers 0 and 2 are split, all others are not: the CPU's side is started for those two alone."""

    def choose(sizes: ModelSizes, _fixed: FixedBytes, _left: int) -> Placement:
        some, whole = split(sizes.config, 0.5).layers, split(sizes.config, 1.0).layers
        return Placement(tuple(some[i] if i in (0, 2) else whole[i] for i in range(len(some))), head_on_gpu=True)

    with hybrid(models["relu-llama"], "auto", choose) as llm:
        assert llm.engine.hybrid is not None
        cold = llm.engine.hybrid.executor.cold_side
        assert cold is not None
        started = []
        start = cold.start
        cold.start = lambda *args, **named: (started.append(args[1].weights.up.name), start(*args, **named))[1]
        llm.logits(TOKENS[:1])
    assert started == ["blk.0.ffn_up.weight", "blk.2.ffn_up.weight"]


def test_both_sides_compute_at_once(models: dict[str, Path]) -> None:
    """Each side's part of a layer waits for the other's to have begun, which they could not do in turns."""
    with hybrid(models["bamboo"], "auto", choosing(0.5)) as llm:
        model = llm.engine.hybrid
        assert model is not None
        met = threading.Barrier(2, timeout=20)
        for kernels in (model.executor.step.kernels, llm.engine.kernels):
            compute = kernels.feed_forward_part

            def meeting(*args: Any, compute: Any = compute, **named: Any) -> Any:
                met.wait()
                return compute(*args, **named)

            kernels.feed_forward_part = meeting
        assert np.isfinite(llm.logits(TOKENS[:2])).all()


def test_an_error_of_the_cpus_side_is_raised_and_the_next_forward_works(models: dict[str, Path]) -> None:
    with hybrid(models["bamboo"], "auto", choosing(0.5)) as llm:
        expected = llm.logits(TOKENS)
        compute = llm.engine.kernels.feed_forward_part

        def failing(*_args: Any, **_named: Any) -> Any:
            raise RuntimeError("the CPU's side has failed")

        llm.engine.kernels.feed_forward_part = failing
        with pytest.raises(RuntimeError, match="CPU's side"):
            llm.logits(TOKENS)
        llm.engine.kernels.feed_forward_part = compute
        assert np.array_equal(llm.logits(TOKENS), expected)


@pytest.mark.parametrize("sparsity", MODES)
def test_observers_see_the_neurons_of_the_file(models: dict[str, Path], sparsity: str) -> None:
    seen: list[dict[int, tuple[torch.Tensor, ...]]] = []
    for choose in (None, choosing(0.4, blocks=[True, False] * 6)):
        masks: dict[int, tuple[torch.Tensor, ...]] = {}

        def observe(
            layer: int,
            x: torch.Tensor,
            predicted: torch.Tensor | None,
            fired: torch.Tensor,
            masks: dict[int, tuple[torch.Tensor, ...]] = masks,
        ) -> None:
            masks[layer] = (x.clone(), fired.clone(), *(() if predicted is None else (predicted.clone(),)))

        path = models["relu-llama"]
        with loaded(path, sparsity) if choose is None else hybrid(path, sparsity, choose) as llm:
            llm.logits(TOKENS, observer=observe)
            fired = llm.engine.activity.fired.tolist()
            assert fired == [int(masks[i][1].sum()) for i in range(12)]
        seen.append(masks)
    for layer, expected in seen[0].items():
        actual = seen[1][layer]
        assert len(actual) == len(expected)
        assert torch.allclose(actual[0], expected[0], rtol=1e-3, atol=1e-3)
        for ours, theirs in zip(actual[1:], expected[1:], strict=True):
            assert (ours ^ theirs).sum() <= 0.002 * theirs.numel()


@pytest.mark.parametrize("arrangement", list(Arrangement))
def test_a_closed_model_gives_its_memory_back_with_the_last_reference(
    models: dict[str, Path], arrangement: Arrangement
) -> None:
    """No cycle keeps it until the collector comes by, which a GPU's memory does not call."""
    device = CountedStandIn(arrangement=arrangement)
    llm = loaded(models["bamboo"], vram_budget=1.0, device=device, choose=choosing(0.5))
    llm.generate([TOKENS[:5]], SamplingParams(max_tokens=3, temperature=0.0))
    gc.disable()
    try:
        llm.close()
        del llm
        assert device.live_bytes == 0
    finally:
        gc.enable()


def test_both_sides_are_counted(models: dict[str, Path]) -> None:
    with loaded(models["relu-llama"]) as llm:
        llm.logits(TOKENS)
        expected = llm.engine.activity
    with hybrid(models["relu-llama"], "auto", choosing(0.4)) as llm:
        llm.logits(TOKENS)
        activity = llm.engine.activity
    for name in ("neurons", "first", "second", "down", "fired"):
        assert getattr(activity, name).sum() == pytest.approx(getattr(expected, name).sum(), rel=1e-3)
    assert activity.neurons.tolist() == expected.neurons.tolist()
    assert 0.2 < activity.share_on_device < 0.6
    assert expected.share_on_device == 0.0
    assert activity.predictor_s > 0


def test_the_cache_on_the_device_keeps_its_size(models: dict[str, Path]) -> None:
    with hybrid(models["bamboo"], "auto", choosing(0.5), max_batch=2) as llm:
        with pytest.raises(ContextError, match="2 x 32 tokens"):
            llm.engine.reserve(3, 32)
        texts = llm.generate(["a", "b", "c"], SamplingParams(max_tokens=3, temperature=0.0))
        assert [len(text.token_ids) for text in texts] == [3, 3, 3]
        assert llm.kv_cache.n_slots == 2


def test_prefixes_are_copied_between_slots(models: dict[str, Path]) -> None:
    params = SamplingParams(max_tokens=6, temperature=0.0, n=2)
    with loaded(models["bamboo"]) as llm:
        expected = [completion.token_ids for completion in llm.generate([TOKENS[:8]], params)]
    with hybrid(models["bamboo"], "auto", choosing(0.5)) as llm:
        assert [completion.token_ids for completion in llm.generate([TOKENS[:8]], params)] == expected
        assert llm.stats.vram["used_bytes"] <= llm.stats.vram["budget_bytes"]


def test_places_outside_of_the_cache_are_refused(models: dict[str, Path]) -> None:
    with hybrid(models["bamboo"], "auto", choosing(0.5)) as llm:
        with pytest.raises(IndexError, match="position 32"):
            llm.engine.forward(_token(5, 32))
        with pytest.raises(IndexError, match="slot 3"):
            llm.engine.forward(_token(5, 0, slot=3))


def test_engines_over_ranges_make_a_pipeline(models: dict[str, Path]) -> None:
    from powerinfer_py.config import RuntimeOptions
    from powerinfer_py.gguf import open_gguf
    from powerinfer_py.runtime.engine import Engine

    options = RuntimeOptions(threads=2, vram_budget=1.0, context_length=32)
    tokens = _tokens(TOKENS)
    with open_gguf(models["relu-llama"]) as file:
        config: ModelConfig = Engine(file, RuntimeOptions(threads=1)).config
        choose = given(split(config, 0.4))
        whole = Engine(file, options, device=CountedStandIn(), choose=choose)
        front = Engine(file, options, range(5), device=CountedStandIn(), choose=choose)
        back = Engine(file, options, range(5, 12), device=CountedStandIn(), choose=choose)
        expected = whole.forward(tokens)
        assert torch.equal(back.forward(tokens, front.forward(tokens)), expected)
        for engine in (whole, front, back):
            engine.close()


def _token(token: int, position: int, slot: int = 0) -> Any:
    from powerinfer_py.models.batch import ForwardBatch

    return ForwardBatch(torch.tensor([token]), torch.tensor([position]), torch.tensor([slot]))


def _tokens(ids: list[int]) -> Any:
    from powerinfer_py.models.batch import ForwardBatch

    return ForwardBatch(torch.tensor(ids), torch.arange(len(ids)), torch.zeros(len(ids), dtype=torch.int64))


def test_tritons_kernels_under_their_interpreter(models: dict[str, Path]) -> None:
    """A prompt and a captured step; every intermediate value in the workspace that the ledger has for it."""
    pytest.importorskip("triton")
    ids = [[token % 64 for token in TOKENS[:6]]]
    with loaded(models["arcee"], "predictor", max_batch=1) as llm:
        expected = run_sequences(llm.engine, ids, n_single=1)
    options = {"max_batch": 1, "batch_size": 16}
    with hybrid(models["arcee"], "predictor", choosing(0.4), "triton", Arrangement.TWO_NODES, **options) as llm:
        assert nmse(run_sequences(llm.engine, ids, n_single=1), expected) < 1e-6
        assert llm.engine.hybrid is not None
        assert llm.engine.hybrid.executor.step.buffers.workspace.peak_bytes > 0


def test_the_device_is_given_work_in_its_own_order_alone(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every copy, and those between slots of the cache, are made inside `enqueuing`."""
    depths: list[int] = []

    class Ordered(CountedStandIn):
        depth = 0

        @contextmanager
        def enqueuing(self) -> Iterator[None]:
            self.depth += 1
            yield
            self.depth -= 1

        def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
            depths.append(self.depth)
            super().copy(target, source)

    device, copy_tokens = Ordered(), kv_cache._copy_tokens
    slots: list[int] = []

    def copied(*args: Any) -> None:
        slots.append(device.depth)
        copy_tokens(*args)

    monkeypatch.setattr(kv_cache, "_copy_tokens", copied)
    with loaded(models["bamboo"], vram_budget=1.0, device=device, choose=choosing(0.5)) as llm:
        llm.generate([TOKENS[:5]], SamplingParams(max_tokens=3, temperature=0.0, n=2))
    assert set(depths) == set(slots) == {1}
