"""The fixed part of a budget: the prompt chunk shrinks before anything fails, and the minimum is exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from powerinfer_py.config import Sparsity
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.budget import BudgetError
from powerinfer_py.placement.fixed_bytes import ACTIVATION_SHARE, FixedBytes, choose_chunk, fixed_bytes, minimum_bytes
from powerinfer_py.placement.sizes import ModelSizes, model_sizes

CONTEXT = 12345


@pytest.fixture
def sizes(fixtures: Path) -> ModelSizes:
    with open_gguf(fixtures / "relu-llama.powerinfer.gguf") as file:
        return model_sizes(file, read_config(file), sparsity=Sparsity.PREDICTOR, n_ctx=128, n_slots=3)


def smallest(sizes: ModelSizes, fixed: FixedBytes) -> int:
    """The head, or a block, with which its layer is split."""
    blocks = (layer.block_bytes + fixed.staging for layer in sizes.layers)
    return min(sizes.head_bytes + fixed.head_extra, *blocks)


def test_the_chunk_grows_with_the_budget_and_leaves_room(sizes: ModelSizes) -> None:
    chunks = []
    minimum = minimum_bytes(sizes, 512, CONTEXT)
    for budget in range(minimum, 180_000_000, 600_000):
        fixed = choose_chunk(sizes, 512, budget, CONTEXT)
        left = budget - CONTEXT - fixed.total
        assert left >= smallest(sizes, fixed)
        assert fixed.n_tokens == 3 or fixed.total <= ACTIVATION_SHARE * (budget - CONTEXT)
        chunks.append(fixed.n_tokens)
    assert chunks == sorted(chunks)
    assert (chunks[0], chunks[-1]) == (3, 512)
    assert set(chunks) <= {3, 4, 8, 16, 32, 64, 128, 256, 512}
    assert len(set(chunks)) > 5


def test_exactly_the_minimum_is_enough_and_a_byte_less_names_it(sizes: ModelSizes) -> None:
    minimum = minimum_bytes(sizes, 512, CONTEXT)
    fixed = choose_chunk(sizes, 512, minimum, CONTEXT)
    assert fixed == fixed_bytes(sizes, 3)
    assert minimum - CONTEXT - fixed.total == smallest(sizes, fixed)
    with pytest.raises(BudgetError, match=f"the minimum is .*{minimum} bytes"):
        choose_chunk(sizes, 512, minimum - 1, CONTEXT)


def test_a_short_chunk_that_was_asked_for_stays(sizes: ModelSizes) -> None:
    assert choose_chunk(sizes, 2, 10**9, CONTEXT).n_tokens == 2
    assert choose_chunk(sizes, 7, 10**9, CONTEXT).n_tokens == 7
