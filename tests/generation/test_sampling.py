"""The sampler against a plain float64 chain written out here, hand computations, and the edges of every filter."""

from __future__ import annotations

import math
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pytest

from powerinfer_py.config import SamplingParams
from powerinfer_py.errors import NumericalError, OptionError
from powerinfer_py.generation.sampling import Sampler, largest, token_logprobs

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    weights = [math.exp(value - top) for value in values]
    return [weight / sum(weights) for weight in weights]


def reference_distribution(logits: npt.NDArray[np.float32], params: SamplingParams) -> npt.NDArray[np.float64]:
    """Top-k, then top-p over what is left, then min-p, then temperature: lists, sorting everything."""
    order = sorted(range(logits.size), key=lambda i: (-float(logits[i]), i))
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        total, kept = 0.0, []
        for token, p in zip(order, softmax([float(logits[i]) for i in order]), strict=True):
            kept.append(token)
            total += p
            if total >= params.top_p:
                break
        order = kept
    if params.min_p > 0:
        probabilities = softmax([float(logits[i]) for i in order])
        order = [i for i, p in zip(order, probabilities, strict=True) if p >= params.min_p * probabilities[0]]
    result = np.zeros(logits.size)
    result[order] = softmax([float(logits[i]) / params.temperature for i in order])
    return result


def draw(logits: npt.NDArray[np.float32], params: SamplingParams, n: int, seed: int = 7) -> npt.NDArray[np.int64]:
    sampler = Sampler(params, logits.size, seed)
    return np.bincount([sampler.sample(logits) for _ in range(n)], minlength=logits.size)


def logits_of(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        OFF | {"temperature": 1.0},
        OFF | {"temperature": 2.5},
        OFF | {"top_k": 5},
        OFF | {"top_p": 0.7},
        OFF | {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.1, "temperature": 1.5},
        {"top_k": 20, "top_p": 0.5, "min_p": 0.0, "temperature": 0.3},
        {"top_k": 0, "top_p": 0.95, "min_p": 0.01, "temperature": 1.0},
    ],
)
def test_draws_follow_the_reference_distribution(options: dict[str, float]) -> None:
    params = SamplingParams(**options)
    logits = (np.random.default_rng(5).standard_normal(24) * 2).astype(np.float32)
    expected = reference_distribution(logits, params)
    n = 8000
    counts = draw(logits, params, n)
    support = expected > 0
    assert counts[~support].sum() == 0
    chi_square = float(((counts[support] - n * expected[support]) ** 2 / (n * expected[support])).sum())
    freedom = int(support.sum()) - 1
    # Mean `freedom`, variance 2 * freedom: five deviations, with fixed seeds.
    assert chi_square <= freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("seed", range(20))
def test_candidates_are_the_references_on_large_vocabularies(seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(5000) * random.uniform(0.1, 6)).astype(np.float32)
    params = SamplingParams(
        top_k=int(random.choice([0, 1, 40, 700, 10**6])),
        top_p=float(random.choice([0.0, 0.3, 0.95, 0.9999, 1.0])),
        min_p=float(random.choice([0.0, 0.001, 0.05, 1.0])),
    )
    ids = Sampler(params, logits.size, 0)._candidates(logits)
    expected = np.flatnonzero(reference_distribution(logits, params))
    assert np.array_equal(np.sort(ids), expected)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_picks_the_largest_and_the_lowest_id_among_equals(temperature: float) -> None:
    sampler = Sampler(SamplingParams(temperature=temperature), 5, 1)
    assert sampler.sample(logits_of(0, 3, -1, 3, 2)) == 1


def test_the_same_seed_repeats_and_other_seeds_differ() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    params = SamplingParams(**OFF)

    def sequence(seed: int) -> list[int]:
        sampler = Sampler(params, 1000, seed)
        return [sampler.sample(logits) for _ in range(20)]

    assert sequence(42) == sequence(42)
    assert len({tuple(sequence(42 + k)) for k in range(4)}) == 4
    assert sequence(2**64 - 1) == sequence(2**64 - 1)


def test_the_input_is_left_unchanged() -> None:
    logits = logits_of(1, 2, 3)
    params = SamplingParams(logit_bias={0: 5.0}, repeat_penalty=2.0, top_k=1)
    sampler = Sampler(params, 3, 0)
    sampler.prime([1, 2])
    sampler.sample(logits, np.array([True, True, False]))
    assert np.array_equal(logits, logits_of(1, 2, 3))


# Filters


def test_top_k_takes_the_lowest_ids_among_equals() -> None:
    params = SamplingParams(**(OFF | {"top_k": 2}))
    counts = draw(logits_of(1, 1, 1, 5), params, 400)
    assert counts[1] == counts[2] == 0
    assert counts[3] > counts[0] > 0


@pytest.mark.parametrize("top_k", [0, -1, 4, 99])
def test_top_k_of_none_or_all_keeps_all(top_k: int) -> None:
    assert (draw(logits_of(0, 0, 0, 0), SamplingParams(**(OFF | {"top_k": top_k})), 400) > 0).all()


def test_top_p_includes_the_token_that_reaches_it() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2])).astype(np.float32)
    kept = {p: set(np.flatnonzero(draw(logits, SamplingParams(**(OFF | {"top_p": p})), 300))) for p in (0.0, 0.45, 0.6)}
    assert kept == {0.0: {0}, 0.45: {0}, 0.6: {0, 1}}


def test_top_p_counts_probabilities_over_what_top_k_left() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.3])).astype(np.float32)
    # Over all three 0.4 misses 0.5; over the first two 0.4 is 0.57 and reaches it.
    assert set(np.flatnonzero(draw(logits, SamplingParams(**(OFF | {"top_p": 0.5})), 300))) == {0, 1}
    assert set(np.flatnonzero(draw(logits, SamplingParams(**(OFF | {"top_p": 0.5, "top_k": 2})), 300))) == {0}


def test_min_p_is_relative_to_the_most_likely_and_before_temperature() -> None:
    logits = np.log(np.array([0.6, 0.3, 0.1])).astype(np.float32)
    for temperature in (0.5, 10.0):
        counts = draw(logits, SamplingParams(**(OFF | {"min_p": 0.4, "temperature": temperature})), 400)
        assert set(np.flatnonzero(counts)) == {0, 1}


def test_min_p_of_one_keeps_the_most_likely() -> None:
    assert set(np.flatnonzero(draw(logits_of(1, 3, 3, 2), SamplingParams(**(OFF | {"min_p": 1.0})), 100))) == {1, 2}


def test_a_tiny_temperature_is_greedy_without_overflow() -> None:
    counts = draw(logits_of(-80, 80, 79), SamplingParams(**(OFF | {"temperature": 5e-324})), 20)
    assert counts[1] == 20


def test_tokens_at_minus_infinity_are_never_drawn() -> None:
    logits = logits_of(-np.inf, 0, -np.inf, 0, -np.inf)
    counts = draw(logits, SamplingParams(**OFF), 300)
    assert counts[[0, 2, 4]].sum() == 0
    assert counts[[1, 3]].min() > 0


def test_a_vocabulary_of_one() -> None:
    assert Sampler(SamplingParams(), 1, 0).sample(logits_of(-3)) == 0


# Bias, penalties, mask


def adjusted(logits: npt.NDArray[np.float32], history: list[int], **options: object) -> list[float]:
    sampler = Sampler(SamplingParams(**options), logits.size, 0)  # type: ignore[arg-type]
    sampler.prime(history)
    return [float(value) for value in sampler._adjust(logits, None)]


def test_the_repeat_penalty_divides_positive_and_multiplies_other_logits_once() -> None:
    assert adjusted(logits_of(4, -4, 0, 4), [0, 0, 1, 2], repeat_penalty=2.0) == [2, -8, 0, 4]


def test_presence_counts_once_and_frequency_every_time() -> None:
    result = adjusted(logits_of(4, 4, 4), [0, 0, 1], presence_penalty=0.5, frequency_penalty=1.0)
    assert result == [4 - 0.5 - 2, 4 - 0.5 - 1, 4]


def test_penalties_together_come_after_the_bias_and_in_powerinfers_order() -> None:
    # Token 0: (1 + 3) / 2 - 2 * 0.25 - 0.5; token 1: (1 - 3) * 2 - 0.25 - 0.5.
    result = adjusted(
        logits_of(1, 1, 1),
        [0, 1, 0],
        repeat_penalty=2.0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={0: 3.0, 1: -3.0},
    )
    assert result == [1.0, -4.75, 1.0]


@pytest.mark.parametrize(("window", "expected"), [(0, [2, 2, 2]), (1, [2, 2, 1]), (2, [2, 1, 1]), (-1, [1, 1, 1])])
def test_penalties_look_back_over_the_window(window: int, expected: list[float]) -> None:
    assert adjusted(logits_of(2, 2, 2), [0, 1, 2], repeat_penalty=2.0, repeat_last_n=window) == expected


def test_a_token_that_is_still_in_the_window_stays_penalised() -> None:
    assert adjusted(logits_of(2, 2), [0, 0, 1], repeat_penalty=2.0, repeat_last_n=2) == [1, 1]


def test_accept_feeds_the_history_and_sample_does_not() -> None:
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=5.0), 2, 0)
    logits = logits_of(2, 1)
    assert [sampler.sample(logits), sampler.sample(logits)] == [0, 0]
    sampler.accept(0)
    assert sampler.sample(logits) == 1


def test_a_bias_of_minus_infinity_and_a_ban_exclude_a_token() -> None:
    greedy = SamplingParams(temperature=0, logit_bias={0: -math.inf})
    assert Sampler(greedy, 3, 0).sample(logits_of(9, 5, 1)) == 1
    assert Sampler(greedy, 3, 0, banned=[1]).sample(logits_of(9, 5, 1)) == 2


def test_a_bias_can_promote_a_token() -> None:
    assert Sampler(SamplingParams(temperature=0, logit_bias={2: 10.0}), 3, 0).sample(logits_of(9, 5, 1)) == 2


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, OFF])
def test_the_mask_from_outside_holds(options: dict[str, float]) -> None:
    sampler = Sampler(SamplingParams(**options), 4, 3)
    mask = np.array([False, True, False, True])
    assert {sampler.sample(logits_of(9, 1, 9, 1), mask) for _ in range(60)} <= {1, 3}


@pytest.mark.parametrize("token", [3, 10**9])
def test_a_bias_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(OptionError, match=f"token {token} "):
        Sampler(SamplingParams(logit_bias={token: 1.0}), 3, 0)


# Damage


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("bad", "message"),
    [((1, np.nan, 2), "NaN"), ((np.inf, 0, 0), r"\+inf"), ((-np.inf, -np.inf, -np.inf), "all -inf")],
)
def test_damaged_logits_raise(bad: tuple[float, ...], message: str, temperature: float) -> None:
    with pytest.raises(NumericalError, match=message):
        Sampler(SamplingParams(temperature=temperature), 3, 0).sample(logits_of(*bad))


def test_one_nan_among_many_is_found() -> None:
    logits = np.zeros(100_003, dtype=np.float32)
    logits[77_777] = np.nan
    with pytest.raises(NumericalError, match="NaN"):
        Sampler(SamplingParams(), logits.size, 0).sample(logits)
    with pytest.raises(NumericalError, match="NaN"):
        token_logprobs(logits, 0)


def test_nothing_left_to_pick_raises() -> None:
    with pytest.raises(NumericalError, match="no token is left"):
        Sampler(SamplingParams(), 2, 0).sample(logits_of(1, 2), np.array([False, False]))
    with pytest.raises(NumericalError, match="no token is left"):
        Sampler(SamplingParams(logit_bias={0: -math.inf}), 1, 0).sample(logits_of(1))


def test_penalties_beyond_float32_ban_or_raise() -> None:
    sampler = Sampler(SamplingParams(temperature=0, presence_penalty=1e300), 2, 0)
    sampler.prime([0])
    assert sampler.sample(logits_of(5, 1)) == 1
    sampler = Sampler(SamplingParams(presence_penalty=-1e300), 2, 0)
    sampler.prime([0])
    with pytest.raises(NumericalError, match="after bias and penalties"):
        sampler.sample(logits_of(5, 1))


def test_logits_of_another_size_are_a_defect() -> None:
    with pytest.raises(ValueError, match="shape"):
        Sampler(SamplingParams(), 3, 0).sample(logits_of(1, 2))


def test_a_vocabulary_of_128000_is_sampled_in_under_two_milliseconds() -> None:
    logits = (np.random.default_rng(1).standard_normal(128_256) * 3).astype(np.float32)
    sampler = Sampler(SamplingParams(), logits.size, 1)

    def seconds() -> float:
        started = perf_counter()
        sampler.sample(logits)
        return perf_counter() - started

    # The best of several: the machine may be shared, the cost of the work is not.
    assert min(seconds() for _ in range(20)) < 2e-3


# Log-probabilities


def test_logprobs_are_those_of_the_unmodified_logits() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3])).astype(np.float32)
    report = token_logprobs(logits, 2, 2)
    assert report.token_id == 2
    assert math.isclose(report.logprob, math.log(0.3), abs_tol=1e-6)
    assert [token for token, _ in report.top] == [1, 2]
    assert math.isclose(report.top[0][1], math.log(0.6), abs_tol=1e-6)
    assert report.to_dict()["top"] == [{"token_id": t, "logprob": p} for t, p in report.top]


def test_logprobs_of_a_token_that_cannot_occur() -> None:
    report = token_logprobs(logits_of(0, -np.inf), 1, 5)
    assert report.logprob == -math.inf
    assert report.to_dict()["logprob"] is None
    assert len(report.top) == 2


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4, 5])
def test_largest_orders_by_value_then_index(k: int) -> None:
    values = logits_of(2, 5, 2, 5, 2)
    assert largest(values, k).tolist() == [1, 3, 0, 2, 4][:k]
