"""The calls to NVIDIA's driver, made to libraries of our own in its place: no GPU is needed, and none is shown to work.

The stand-in for libcuda runs a stream's host functions, writes and waits in order on a thread of its own, as a driver
or a device does.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from helpers_cold_jobs import Buffers, block_of
from helpers_kernels import same_bits

from powerinfer_py.errors import DeviceError
from powerinfer_py.kernels.cold_jobs import host_functions, make_follower, make_job, make_sequence, make_worker
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.runtime.hybrid.cuda_driver import CudaDriver, Monitor, Usage

CUDA = r"""
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
namespace {
struct Call { void (*function)(void*); void* data; unsigned value = 0; bool waits = false; };
// A stream: calls in order, one after the other, on a thread that the caller does not wait for.
struct Stream {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Call> calls;
    bool busy = false;
    Stream() { std::thread([this] { work(); }).detach(); }
    void work() {
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [this] { return !calls.empty(); });
            const Call call = calls.front();
            calls.pop_front();
            busy = true;
            lock.unlock();
            auto* flag = static_cast<unsigned*>(call.data);
            if (call.function) call.function(call.data);
            else if (!call.waits) __atomic_store_n(flag, call.value, __ATOMIC_RELEASE);
            else while (__atomic_load_n(flag, __ATOMIC_ACQUIRE) != call.value) std::this_thread::yield();
            lock.lock();
            busy = false;
            changed.notify_all();
        }
    }
};
int put(void* stream, Call call) {
    if (!stream) return 400;
    auto* s = static_cast<Stream*>(stream);
    { std::lock_guard lock(s->mutex); s->calls.push_back(call); }
    s->changed.notify_all();
    return 0;
}
}
extern "C" {
void* stand_in_stream() { return new Stream; }
void stand_in_synchronise(void* stream) {
    auto* s = static_cast<Stream*>(stream);
    std::unique_lock lock(s->mutex);
    s->changed.wait(lock, [s] { return s->calls.empty() && !s->busy; });
}
int cuLaunchHostFunc(void* stream, void (*function)(void*), void* data) { return put(stream, {function, data}); }
int cuStreamWriteValue32_v2(void* stream, unsigned long long address, unsigned value, unsigned flags) {
    if (flags != 0) return 1;
    return put(stream, {nullptr, reinterpret_cast<void*>(address), value, false});
}
int cuStreamWaitValue32_v2(void* stream, unsigned long long address, unsigned value, unsigned flags) {
    if (flags != 1) return 1;  // CU_STREAM_WAIT_VALUE_EQ
    return put(stream, {nullptr, reinterpret_cast<void*>(address), value, true});
}
int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal + 7; return ordinal < 2 ? 0 : 101; }
int cuDeviceGetPCIBusId(char* text, int n, int device) {
    std::strncpy(text, device == 8 ? "0000:0B:00.0" : "0000:0A:00.0", static_cast<unsigned long>(n));
    return 0;
}
}
"""
NVML = r"""
#include <unistd.h>
#include <cstring>
extern "C" {
struct Memory { unsigned long long total, free, used; };
struct Process { unsigned pid; unsigned long long used; unsigned a, b; };
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** handle) {
    *handle = reinterpret_cast<void*>(std::strcmp(id, "0000:0B:00.0") == 0 ? 2ul : 1ul);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void* handle, Memory* memory) {
    *memory = {24ull << 30, handle == reinterpret_cast<void*>(2ul) ? 20ull << 30 : 1ull, 0};
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void* handle, unsigned* count, Process* processes) {
    if (handle != reinterpret_cast<void*>(2ul)) return 3;
    processes[0] = {1, 5, 0, 0};
    processes[1] = {static_cast<unsigned>(getpid()), 432ull << 20, 0, 0};
    *count = 2;
    return 0;
}
}
"""


def library(folder: Path, name: str, source: str) -> str:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no compiler")
    (folder / f"{name}.cpp").write_text(source, encoding="utf-8")
    command = [compiler, "-std=c++17", "-shared", "-fPIC", "-pthread", f"{name}.cpp", "-o", f"{name}.so"]
    subprocess.run(command, cwd=folder, check=True)
    return str(folder / f"{name}.so")


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> str:
    return library(tmp_path_factory.mktemp("cuda"), "cuda", CUDA)


class Layers:
    """Three layers' jobs, and a stream of the library at `path` that they are begun from."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.stand_in_stream.restype = ctypes.c_void_p
        self._library.stand_in_synchronise.argtypes = (ctypes.c_void_p,)
        self.stream = self._library.stand_in_stream()
        self.kernels, self.worker = NativeKernels(2), make_worker()
        self.blocks = [block_of(self.kernels) for _ in range(3)]
        self.buffers = [Buffers(2) for _ in self.blocks]
        self._masks: list[torch.Tensor] = []
        self.jobs = [
            make_job(self.worker, self.kernels, block, b.h, b.bits, b.y)
            for block, b in zip(self.blocks, self.buffers, strict=True)
        ]

    def fill(self, seed: int) -> None:
        self._masks = [b.fill(seed + 7 * i) for i, b in enumerate(self.buffers)]

    def check(self) -> None:
        """When the stream has come to its end, every layer has its part."""
        self._library.stand_in_synchronise(self.stream)
        for block, b, mask in zip(self.blocks, self.buffers, self._masks, strict=True):
            assert same_bits(b.y, self.kernels.feed_forward_part(block, b.h, mask).y)
            b.y.fill_(float("nan"))


def test_host_functions_in_a_streams_order(cuda: str) -> None:
    """Submit, whatever lies between, wait: a layer after the other, from a thread that is not Python's."""
    driver, layers = CudaDriver(cuda), Layers(cuda)
    submit, wait, run = host_functions()
    for seed in range(10):
        layers.fill(seed)
        for job in layers.jobs:
            for function in (submit, wait) if seed % 2 else (run,):
                driver.launch_host_function(layers.stream, function, job.address)
        layers.check()
        assert not layers.worker.take_error()


def test_flags_in_a_streams_order(cuda: str) -> None:
    """A write, whatever lies between, a wait: a thread follows the stream from layer to layer, step after step."""
    driver, layers, follower = CudaDriver(cuda), Layers(cuda), make_follower()
    driver.require_flags()
    lines = torch.ones(len(layers.jobs), 2, 16, dtype=torch.int32)
    flags = [(begun[:1], done[:1]) for begun, done in lines]
    sequence = make_sequence(follower, layers.jobs, flags)
    for seed in range(50):
        layers.fill(seed)
        assert follower.follow(sequence)
        for begun, done in flags:
            driver.write_value(layers.stream, begun.data_ptr(), 1)
            driver.wait_value(layers.stream, done.data_ptr(), 1)
        layers.check()
        follower.abandon()
        assert not follower.take_error()
    with pytest.raises(ValueError, match="another follower's"):
        make_follower().follow(sequence)
    assert lines[:, :, 1:].eq(1).all()


def test_a_refusal_is_an_error(cuda: str) -> None:
    with pytest.raises(DeviceError, match=r"cuLaunchHostFunc .error 400"):
        CudaDriver(cuda).launch_host_function(0, host_functions()[1], 0)
    flag = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(DeviceError, match=r"cuStreamWriteValue32_v2 .error 400"):
        CudaDriver(cuda).write_value(0, flag.data_ptr(), 1)
    with pytest.raises(DeviceError, match=r"cuStreamWaitValue32_v2 .error 400"):
        CudaDriver(cuda).wait_value(0, flag.data_ptr(), 1)
    with pytest.raises(DeviceError, match=r"cuDeviceGet .error 101"):
        CudaDriver(cuda).bus_id(5)


def test_a_device_is_found_by_its_bus(cuda: str, tmp_path: Path) -> None:
    nvml = library(tmp_path, "nvml", NVML)
    driver = CudaDriver(cuda)
    assert driver.bus_id(1) == b"0000:0B:00.0"
    monitor = Monitor(driver.bus_id(1), nvml)
    assert monitor.usage() == Usage(24 << 30, 20 << 30)
    assert monitor.process_bytes() == 432 << 20
    # What NVML does not say is not invented.
    assert Monitor(driver.bus_id(0), nvml).process_bytes() is None


def test_a_driver_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="driver cannot be used"):
        CudaDriver(str(tmp_path / "libcuda.so.1"))
    empty = library(tmp_path, "empty", f'extern "C" int nothing() {{ return {os.getpid()}; }}')
    with pytest.raises(DeviceError, match="too old: it has no cuLaunchHostFunc"):
        CudaDriver(empty)
    old = library(tmp_path, "old", 'extern "C" int cuLaunchHostFunc() { return 0; }')
    with pytest.raises(DeviceError, match="too old: it has no cuStreamWriteValue32_v2"):
        CudaDriver(old).require_flags()
