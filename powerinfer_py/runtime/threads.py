"""How many threads there are to use: the processors of this process, as the system and its container describe them.

It reads files below `/sys` and `/proc` and changes nothing. Where a system has no such files (not Linux, or hidden by a
sandbox) every processor counts as what psutil says of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from powerinfer_py.runtime.system_files import as_integer, control_groups, read_text

# A core below this share of the best one is an efficiency core. Arm's capacities are 1024 for the best, 750 and more
# for the middle and 250 to 500 for the little cores; the compact cores of AMD reach 65 to 70 % of the others' clock,
# while favoured cores of one kind differ by a tenth.
_CAPACITY_SHARE = 0.6
_FREQUENCY_SHARE = 0.75


@dataclass(frozen=True)
class Processors:
    """What this process may use.

    logical: processors. cores: physical cores they belong to. performance_cores: those that are no efficiency cores.
    quota: processors' worth of time that its control groups grant, None for no limit.
    """

    logical: int
    cores: int
    performance_cores: int
    quota: float | None

    @property
    def threads(self) -> int:
        """A thread a performance core, and no more than the quota pays for: two threads of one core share its
        multipliers and its cache, a slow core keeps the fast ones waiting, and a group beyond its quota is stopped.
        """
        limit = self.performance_cores if self.quota is None else min(self.performance_cores, int(self.quota))
        return max(1, limit)


def default_threads() -> int:
    """Threads to use where the user names no number."""
    return find_processors().threads


def find_processors(allowed: Iterable[int] | None = None, root: Path = Path("/")) -> Processors:
    """allowed: numbers of the processors to count, None for those this process may run on. root: where the trees `sys`
    and `proc` hang.
    """
    numbers = _affinity() if allowed is None else set(allowed)
    quota = _quota(root)
    cores = _cores(numbers, root / "sys/devices/system/cpu")
    if cores is None:
        physical = min(len(numbers), psutil.cpu_count(logical=False) or len(numbers))
        return Processors(len(numbers), physical, physical, quota)
    fast = _performance_processors(numbers, root / "sys/devices")
    return Processors(len(numbers), len(cores), sum(1 for core in cores if core & fast), quota)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cores(numbers: set[int], cpus: Path) -> set[frozenset[int]] | None:
    """The cores of these processors, each as the processors it has; None where the system does not say."""
    cores = set()
    for number in numbers:
        topology = cpus / f"cpu{number}" / "topology"
        text = read_text(topology / "core_cpus_list") or read_text(topology / "thread_siblings_list")
        siblings = _number_list(text)
        if number not in siblings:
            return None
        cores.add(frozenset(siblings))
    return cores


def _performance_processors(numbers: set[int], devices: Path) -> set[int]:
    """Those of the processors that are no efficiency cores; all of them where they are of one kind."""
    # Intel's hybrid processors register a device a kind.
    fast = numbers & _number_list(read_text(devices / "cpu_core/cpus"))
    if fast:
        return fast
    for name, share in (("cpu_capacity", _CAPACITY_SHARE), ("cpufreq/cpuinfo_max_freq", _FREQUENCY_SHARE)):
        values = {number: as_integer(read_text(devices / "system/cpu" / f"cpu{number}" / name)) for number in numbers}
        known = [value for value in values.values() if value is not None]
        if known and len(known) == len(values):
            least = share * max(known)
            return {number for number, value in values.items() if value is not None and value >= least}
    return numbers


def _quota(root: Path) -> float | None:
    """The smallest quota of the process's control groups and of those above them, in processors."""
    groups = control_groups("cpu", root)
    quotas = [_quota_of(read_text(group / "cpu.max")) for group in groups.unified]
    for group in groups.separate:
        limit, period = read_text(group / "cpu.cfs_quota_us"), read_text(group / "cpu.cfs_period_us")
        quotas.append(_quota_of(f"{limit} {period}"))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(text: str | None) -> float | None:
    """Of `LIMIT PERIOD` in microseconds; `max` and -1 are no limit."""
    parts = (text or "").split()
    if len(parts) != 2:
        return None
    limit, period = as_integer(parts[0]), as_integer(parts[1])
    return limit / period if limit is not None and period is not None and limit > 0 and period > 0 else None


def _number_list(text: str | None) -> set[int]:
    """`0-3,8` as numbers; nothing where it is malformed."""
    numbers: set[int] = set()
    for part in (text or "").strip().split(","):
        first, _, last = part.partition("-")
        begin, end = as_integer(first), as_integer(last or first)
        if begin is None or end is None:
            return set()
        numbers.update(range(begin, end + 1))
    return numbers
