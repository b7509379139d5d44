"""Peaks of memory: what was held since the last reset, and no more."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from powerinfer_py.runtime import peak_memory

SIZE = 64 << 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can only be set back through /proc")
def test_the_host_peak_is_of_the_period() -> None:
    if not peak_memory.forget_peaks():
        pytest.skip("this system does not let a process set its peak back")
    before = peak_memory.host_peak_bytes()
    assert before is not None
    # A map of its own: the allocator may serve 64 MiB out of pages that other tests left resident.
    block = mmap.mmap(-1, SIZE)
    for page in range(0, SIZE, mmap.PAGESIZE):
        block[page] = 1
    during = peak_memory.host_peak_bytes()
    assert during is not None and during - before >= 0.9 * SIZE
    block.close()
    later = peak_memory.host_peak_bytes()
    assert later is not None and later - before >= 0.9 * SIZE
    assert peak_memory.forget_peaks()
    after = peak_memory.host_peak_bytes()
    assert after is not None and after < during - 0.9 * SIZE


def test_without_proc_the_peak_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(peak_memory, "_SELF", tmp_path / "none")
    assert not peak_memory.forget_peaks()
    assert peak_memory.host_peak_bytes() is None


def test_a_status_without_a_peak_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmRSS:\t 12 kB\n")
    monkeypatch.setattr(peak_memory, "_SELF", tmp_path)
    assert peak_memory.host_peak_bytes() is None
    (tmp_path / "status").write_text("VmPeak:\t 90 kB\nVmHWM:\t   12 kB\nVmRSS:\t 5 kB\n")
    assert peak_memory.host_peak_bytes() == 12 * 1024


def test_no_gpu_memory_without_cuda() -> None:
    import torch

    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use")
    assert peak_memory.device_peak_bytes() == 0
