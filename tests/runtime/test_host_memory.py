"""What is available is the smaller of the machine's memory and what every control group leaves, on trees made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from helpers_system_files import write_tree

from powerinfer_py.runtime import host_memory
from powerinfer_py.runtime.host_memory import available_bytes, fits_in_memory

GIB = 1 << 30
MACHINE = 64 * GIB


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))


def unified(folder: str, maximum: object, current: int, high: object = "max", stat: str = "") -> dict[str, object]:
    group = f"sys/fs/cgroup/{folder}"
    return {
        f"{group}/memory.max": maximum,
        f"{group}/memory.high": high,
        f"{group}/memory.current": current,
        f"{group}/memory.stat": stat,
    }


def separate(folder: str, limit: int, usage: int, stat: str = "") -> dict[str, object]:
    group = f"sys/fs/cgroup/memory/{folder}"
    return {
        f"{group}/memory.limit_in_bytes": limit,
        f"{group}/memory.usage_in_bytes": usage,
        f"{group}/memory.stat": stat,
    }


ALONE = {"proc/self/cgroup": "0::/"}
NESTED = {"proc/self/cgroup": "0::/user/job"}
OLD = {"proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, MACHINE),
        (ALONE, MACHINE),
        (ALONE | unified("", "max", 3 * GIB), MACHINE),
        (ALONE | unified("", 8 * GIB, 3 * GIB), 5 * GIB),
        (ALONE | unified("", 100 * GIB, 3 * GIB), MACHINE),
        (ALONE | unified("", 8 * GIB, 3 * GIB, high=6 * GIB), 3 * GIB),
        (ALONE | unified("", "max", 3 * GIB, high=6 * GIB), 3 * GIB),
        # More is in use than `high` wants.
        (ALONE | unified("", 8 * GIB, 7 * GIB, high=6 * GIB), 0),
        # A group above is tighter than the process's own, and counts what its other groups use.
        (NESTED | unified("user/job", 8 * GIB, 1 * GIB) | unified("user", 10 * GIB, 9 * GIB), 1 * GIB),
        (NESTED | unified("user/job", 2 * GIB, 1 * GIB) | unified("user", 10 * GIB, 2 * GIB), 1 * GIB),
        # The host's path, of which a container sees the top alone.
        (NESTED | unified("", 4 * GIB, 1 * GIB), 3 * GIB),
        ({"proc/self/cgroup": "0::/größe"} | unified("größe", 4 * GIB, 1 * GIB), 3 * GIB),
        (OLD | separate("docker/abc", 8 * GIB, 3 * GIB), 5 * GIB),
        (OLD | separate("", 2**63 - 4096, 3 * GIB), MACHINE),
        (OLD | separate("docker/abc", 8 * GIB, 3 * GIB) | separate("docker", 4 * GIB, 3 * GIB), 1 * GIB),
        # Another controller's tree of version 1, and a group that does not count.
        ({"proc/self/cgroup": "3:cpu:/"} | separate("", 8 * GIB, 3 * GIB), MACHINE),
        (ALONE | {"sys/fs/cgroup/memory.max": 8 * GIB}, MACHINE),
        (ALONE | unified("", "nonsense", 3 * GIB), MACHINE),
    ],
)
def test_the_tightest_limit_counts(tmp_path: Path, files: Mapping[str, object], available: int) -> None:
    assert available_bytes(write_tree(tmp_path, files)) == available


def test_cached_pages_of_files_are_free(tmp_path: Path) -> None:
    """A model that was just read fills the cache of the container, and yet may be copied."""
    stat = f"anon {1 * GIB}\nfile {5 * GIB}\ninactive_file {3 * GIB}\nactive_file {1 * GIB}\nunevictable {1 * GIB}"
    root = write_tree(tmp_path, ALONE | unified("", 8 * GIB, 6 * GIB, stat=stat))
    assert available_bytes(root) == 6 * GIB


def test_version_1_counts_the_groups_below(tmp_path: Path) -> None:
    stat = f"inactive_file 0\nactive_file 0\ntotal_inactive_file {2 * GIB}\ntotal_active_file {1 * GIB}"
    root = write_tree(tmp_path, OLD | separate("docker/abc", 8 * GIB, 6 * GIB, stat))
    assert available_bytes(root) == 5 * GIB


def test_counters_that_disagree_never_exceed_the_limit(tmp_path: Path) -> None:
    """They are read one after the other and gathered by the system in batches."""
    root = write_tree(tmp_path, ALONE | unified("", 8 * GIB, 1 * GIB, stat=f"inactive_file {5 * GIB}"))
    assert available_bytes(root) == 8 * GIB


def test_this_machine() -> None:
    assert 0 <= available_bytes() <= MACHINE


@pytest.mark.parametrize(
    ("available", "most"), [(64 * GIB, 63 * GIB), (8 * GIB, 7 * GIB), (1 * GIB, GIB * 7 // 8), (0, 0)]
)
def test_a_margin_is_left(monkeypatch: pytest.MonkeyPatch, available: int, most: int) -> None:
    monkeypatch.setattr(host_memory, "available_bytes", lambda: available)
    assert fits_in_memory(most)
    assert not fits_in_memory(most + 1)
