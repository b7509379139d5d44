"""The small models of these tests: fixtures, and those that are made of checkpoints or recordings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers_logits import FIXTURES
from helpers_models import write_arcee, write_opt

FIXTURE_NAMES = ["relu-llama", "relu-llama.q4", "bamboo", "bamboo.q4", "relu-falcon", "relu-falcon.q4"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Path by short name; `opt.gguf` holds its down projections the other way, `silu` has blocks there too."""
    folder = tmp_path_factory.mktemp("hybrid")
    found = {name: FIXTURES / f"{name}.powerinfer.gguf" for name in FIXTURE_NAMES}
    found["opt"] = write_opt(folder / "opt.powerinfer.gguf")
    found["opt.gguf"] = write_opt(folder / "opt.gguf", predictors=False, neurons_as_rows=False)
    found["arcee"] = write_arcee(folder / "arcee.powerinfer.gguf")
    found["silu"] = FIXTURES / "llama_cpp" / "llama-q8_0.gguf"
    found["silu.k"] = FIXTURES / "llama_cpp" / "llama-q4_k.gguf"
    return found


@pytest.fixture(scope="module", autouse=True)
def _torch_on_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
