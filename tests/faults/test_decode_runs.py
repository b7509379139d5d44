"""Decoding again and again, at 1 to 8 threads: the same bits each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from powerinfer_py import LLM, SamplingParams

FIXTURES = Path(__file__).parents[1] / "fixtures"
# The log-probabilities of a token depend on every logit, so equal ones leave no bit that could differ unseen.
PARAMS = SamplingParams(max_tokens=3, temperature=0.0, logprobs=20, ignore_eos=True)


@pytest.mark.timeout(900)
def test_bits_are_those_of_the_first_run(request: pytest.FixtureRequest) -> None:
    n_runs = 1000 if request.config.getoption("--soak") else 25
    expected = None
    for threads in range(1, 9):
        with LLM(FIXTURES / "bamboo.q4.powerinfer.gguf", threads=threads, context_length=32) as llm:
            for _ in range(n_runs):
                # What the cache holds of the prompt would not be computed again.
                llm.engine.cache.truncate(0, 0)
                completion = llm.generate([[1, 2, 3]], PARAMS)[0]
                result = completion.token_ids, completion.logprobs
                expected = expected or result
                assert result == expected
    assert expected is not None
    assert len(expected[0]) == 3
    assert expected[1]
