"""What tests of every folder share: where the fixture models lie, and where Triton's kernels run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Triton decides when it is first imported, by whatever test: its interpreter serves where there is no GPU.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

FIXTURES = Path(__file__).parent / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="repeat kills and runs as often as `make soak` promises")
    parser.addoption("--wheel", metavar="FILE", help="the wheel that tests/native/test_wheel.py tries")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of the small models and the logits of independent engines, see tests/fixtures/README.md."""
    return FIXTURES
