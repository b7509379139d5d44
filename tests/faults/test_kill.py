"""kill -9 at any moment: never half a file under a final name, and the next run succeeds with what any run makes."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from faults.conftest import Workshop
from faults.tools import BEFORE, TOOLS, content


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TOOLS)
def test_kill_at_any_moment(name: str, workshop: Workshop, n_kills: int, tmp_path: Path) -> None:
    tool, whole = TOOLS[name], workshop.whole(name)
    output = tmp_path / "output"
    rng = random.Random(name)
    killed = attempts = 0
    # A run that ended before its moment came was not killed and does not count.
    while killed < n_kills:
        attempts += 1
        assert attempts <= 10 * n_kills
        if not tool.is_folder:
            output.write_bytes(BEFORE)
        elif output.exists() and content(output) == content(whole.output):
            # It was finished: a later kill would find nothing to do.
            output.rename(tmp_path / f"finished-{killed}-{time.monotonic_ns()}")
        pid = workshop.zygote.start(workshop.run(name, output))
        time.sleep(rng.uniform(0, whole.seconds))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        killed += workshop.zygote.wait(pid) == -signal.SIGKILL
        if output.exists():
            tool.check(output, whole.output)
    if not tool.is_folder:
        output.unlink()
    assert workshop.zygote.call(workshop.run(name, output)) == 0, workshop.errors.read_text()
    assert content(output) == content(whole.output)
    assert not [*tmp_path.rglob(".powerinfer-*")]
