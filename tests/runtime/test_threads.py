"""Threads by default: performance cores that the process may run on, within its quota. On trees made up like /sys."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from helpers_system_files import write_tree

from powerinfer_py.runtime.threads import Processors, default_threads, find_processors


def siblings(cores: list[str]) -> dict[str, str]:
    """Topology of cores given as lists of their processors, such as `0,4` or `0-1`."""
    files = {}
    for core in cores:
        first, _, last = core.replace("-", ",").partition(",")
        for number in {first, last or first}:
            files[f"sys/devices/system/cpu/cpu{number}/topology/core_cpus_list"] = core
    return files


def per_cpu(name: str, values: list[int]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{number}/{name}": str(value) for number, value in enumerate(values)}


ALONE = [str(number) for number in range(8)]


def test_this_machine() -> None:
    found = find_processors()
    assert 1 <= found.performance_cores <= found.cores <= found.logical == len(os.sched_getaffinity(0))
    assert 1 <= default_threads() <= found.cores


def test_two_threads_of_a_core_count_once(tmp_path: Path) -> None:
    root = write_tree(tmp_path, siblings(["0,4", "1,5", "2,6", "3,7"]))
    assert find_processors(range(8), root) == Processors(8, 4, 4, None)


def test_older_kernels_name_the_list_otherwise(tmp_path: Path) -> None:
    files = {name.replace("core_cpus_list", "thread_siblings_list"): text for name, text in siblings(["0-1"]).items()}
    assert find_processors(range(2), write_tree(tmp_path, files)).cores == 1


def test_affinity_leaves_some(tmp_path: Path) -> None:
    root = write_tree(tmp_path, siblings(["0,4", "1,5", "2,6", "3,7"]))
    assert find_processors({1, 3, 5}, root) == Processors(3, 2, 2, None)


def test_intel_hybrid(tmp_path: Path) -> None:
    """Two performance cores of two threads, four efficiency cores."""
    files = siblings(["0-1", "2-3", "4", "5", "6", "7"])
    files |= {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-7"}
    root = write_tree(tmp_path, files)
    assert find_processors(range(8), root) == Processors(8, 6, 2, None)
    # Bound to efficiency cores it uses those.
    assert find_processors({4, 5, 6}, root) == Processors(3, 3, 3, None)


@pytest.mark.parametrize(
    ("name", "values", "fast"),
    [
        ("cpu_capacity", [1024, 860, 860, 860, 280, 280, 280, 280], 4),
        ("cpu_capacity", [1024] * 8, 8),
        ("cpufreq/cpuinfo_max_freq", [5100000] * 4 + [3300000] * 4, 4),
        ("cpufreq/cpuinfo_max_freq", [5700000, 5700000, 5200000, 5200000, 5200000, 5200000, 5200000, 5200000], 8),
    ],
)
def test_cores_of_unequal_strength(tmp_path: Path, name: str, values: list[int], fast: int) -> None:
    root = write_tree(tmp_path, siblings(ALONE) | per_cpu(name, values))
    assert find_processors(range(8), root) == Processors(8, 8, fast, None)


def test_half_known_strengths_say_nothing(tmp_path: Path) -> None:
    root = write_tree(tmp_path, siblings(ALONE) | per_cpu("cpu_capacity", [1024, 100]))
    assert find_processors(range(8), root).performance_cores == 8


@pytest.mark.parametrize(
    ("files", "quota", "threads"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5, 2),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5, 1),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None, 8),
        (
            {
                "proc/self/cgroup": "0::/user/job",
                "sys/fs/cgroup/user/job/cpu.max": "600000 100000",
                "sys/fs/cgroup/user/cpu.max": "300000 100000",
            },
            3.0,
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            4.0,
            4,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
            8,
        ),
        ({"proc/self/cgroup": "0::/../outside\nnonsense\n1:cpu", "sys/fs/cgroup/cpu.max": "some thing else"}, None, 8),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], quota: float | None, threads: int) -> None:
    found = find_processors(range(8), write_tree(tmp_path, siblings(ALONE) | files))
    assert (found.quota, found.threads) == (quota, threads)


@pytest.mark.parametrize("text", ["", "nonsense", "1-", "3"])
def test_a_hidden_or_senseless_topology_leaves_psutil(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 6 if logical else 3)
    root = write_tree(tmp_path, {"sys/devices/system/cpu/cpu0/topology/core_cpus_list": text} if text else {})
    assert find_processors(range(6), root) == Processors(6, 3, 3, None)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)  # noqa: ARG005
    assert find_processors(range(6), root).threads == 6
