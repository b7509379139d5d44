"""The bandwidth probe adds everything up, and refuses a buffer that does not fit."""

from __future__ import annotations

import pytest

from powerinfer_py.errors import OptionError
from powerinfer_py.runtime import memory_bandwidth
from powerinfer_py.runtime.memory_bandwidth import read_bandwidth


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_rate_for_each_pass(threads: int) -> None:
    rates = read_bandwidth(threads, 1 << 20, passes=4)
    assert len(rates) == 4
    assert min(rates) > 0


def test_a_part_left_out_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bandwidth.np, "array_split", lambda words, n: [words[1:]] + [words[:0]] * (n - 1))
    with pytest.raises(AssertionError, match="sum is wrong"):
        read_bandwidth(2, 1 << 16)


def test_a_buffer_beyond_memory_is_refused() -> None:
    with pytest.raises(OptionError, match="more than is available"):
        read_bandwidth(1, 1 << 60)
