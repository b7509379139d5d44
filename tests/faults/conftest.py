"""One zygote and one set of undisturbed outputs for the tests of faults."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.tools import TOOLS, make_inputs
from faults.zygote import Run, Zygote


@dataclass(frozen=True)
class Whole:
    """What an undisturbed run made, and how long it took."""

    output: Path
    seconds: float


class Workshop:
    """Inputs, a zygote, and the undisturbed output of every tool, made when first asked for."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder = folder
        self.inputs = make_inputs(folder)
        self.zygote = zygote
        self._whole: dict[str, Whole] = {}

    def run(self, name: str, output: Path, **limits: object) -> Run:
        """A run of the tool; its standard error goes to a file beside the inputs, emptied first."""
        self.errors.unlink(missing_ok=True)
        return Run(TOOLS[name].command, TOOLS[name].argv(self.inputs, output), str(self.errors), **limits)  # type: ignore[arg-type]

    @property
    def errors(self) -> Path:
        return self.folder / "stderr.txt"

    def whole(self, name: str) -> Whole:
        if name not in self._whole:
            output = self.folder / f"whole-{name}"
            start = time.monotonic()
            assert self.zygote.call(self.run(name, output)) == 0, self.errors.read_text()
            self._whole[name] = Whole(output, time.monotonic() - start)
        return self._whole[name]


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with Zygote() as zygote:
        yield Workshop(tmp_path_factory.mktemp("workshop"), zygote)


@pytest.fixture
def n_kills(request: pytest.FixtureRequest) -> int:
    """Kills of each tool: a few, or with --soak as many as are promised."""
    return 50 if request.config.getoption("--soak") else 5
