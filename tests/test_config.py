"""Options of the wrong type or out of range are refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from powerinfer_py.config import RuntimeOptions, SamplingParams
from powerinfer_py.errors import OptionError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -2),
        ("max_tokens", True),
        ("max_tokens", 1.5),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", 0.5),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -2),
        ("presence_penalty", float("inf")),
        ("n", 0),
        ("seed", -1),
        ("seed", True),
        ("seed", 2**64),
        ("stop", ("a", "")),
        ("logprobs", True),
        ("logprobs", -1),
        ("ignore_eos", "no"),
        ("logit_bias", None),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: float("inf")}),
    ],
)
def test_sampling(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", 0),
        ("threads", True),
        ("context_length", -1),
        ("max_batch", 0),
        ("vram_budget", -0.5),
        ("vram_budget", float("inf")),
        ("vram_budget", "8GB"),
        ("sparsity", "none"),
        ("activation", "gelu"),
        ("sparse_threshold", float("nan")),
        ("main_gpu", -1),
    ],
)
def test_runtime(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=name):
        RuntimeOptions(**{name: value})


def test_accepted() -> None:
    params = SamplingParams(logit_bias={np.int64(5): float("-inf"), 6: 1}, stop="end")
    assert params.logit_bias == {5: float("-inf"), 6: 1.0}
    assert params.stop == ("end",)
    assert RuntimeOptions(vram_budget=-1, sparsity="exact").sparsity == "exact"
    with pytest.raises(TypeError):
        RuntimeOptions(n_threads=2)
