"""What tests of every folder share: where the fixture models lie."""

from __future__ import annotations

from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="repeat kills and runs as often as `make soak` promises")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Folder of the small models and the logits of independent engines, see tests/fixtures/README.md."""
    return FIXTURES
