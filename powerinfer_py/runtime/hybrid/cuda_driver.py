"""What torch does not offer of NVIDIA's driver: host functions and flags in a stream, and what a process holds there.

All come from libraries that every machine with the driver has, through ctypes: `cuLaunchHostFunc` and the stream memory
operations of libcuda.so.1, and memory figures of libnvidia-ml.so.1. No headers and no toolkit are needed. Nothing here
makes a context.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

from powerinfer_py.errors import DeviceError

CUDA_LIBRARY = "libcuda.so.1"
NVML_LIBRARY = "libnvidia-ml.so.1"
_BUS_ID_BYTES = 32
_MOST_PROCESSES = 1024
# Of CUstreamWriteValue_flags and CUstreamWaitValue_flags in the driver's interface.
_WRITE_DEFAULT = 0
_WAIT_EQUAL = 1


class CudaDriver:
    """library: name or path of the driver's library. Raises DeviceError where it is not there or lacks a function."""

    def __init__(self, library: str = CUDA_LIBRARY) -> None:
        self._library = _open(library)
        self._launch = _function(self._library, "cuLaunchHostFunc", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)

    def launch_host_function(self, stream: int, function: int, data: int) -> None:
        """Enqueues `function(data)` in a stream, all given as addresses; in one that is being captured, as a node.

        Raises DeviceError where the driver refuses.
        """
        _require(self._launch(stream, function, data), "cuLaunchHostFunc")

    def require_flags(self) -> None:
        """Raises DeviceError where the driver has no `write_value` and `wait_value`: before CUDA 11.7."""
        for name in ("cuStreamWriteValue32_v2", "cuStreamWaitValue32_v2"):
            _function(self._library, name)

    def write_value(self, stream: int, address: int, value: int) -> None:
        """Enqueues a write of 32 bits to page-locked memory, behind a fence; in a stream that is captured, as a node.

        Raises DeviceError where the driver refuses.
        """
        self._memory_operation("cuStreamWriteValue32_v2", stream, address, value, _WRITE_DEFAULT)

    def wait_value(self, stream: int, address: int, value: int) -> None:
        """The same for a wait until 32 bits of page-locked memory equal `value`."""
        self._memory_operation("cuStreamWaitValue32_v2", stream, address, value, _WAIT_EQUAL)

    def _memory_operation(self, name: str, stream: int, address: int, value: int, flags: int) -> None:
        arguments = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint)
        _require(_function(self._library, name, *arguments)(stream, address, value, flags), name)

    def bus_id(self, index: int) -> bytes:
        """The PCI bus id of a device by its number in this process."""
        start = _function(self._library, "cuInit", ctypes.c_uint)
        find = _function(self._library, "cuDeviceGet", ctypes.c_void_p, ctypes.c_int)
        name = _function(self._library, "cuDeviceGetPCIBusId", ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
        device = ctypes.c_int(0)
        text = ctypes.create_string_buffer(_BUS_ID_BYTES)
        _require(start(0), "cuInit")
        _require(find(ctypes.addressof(device), index), "cuDeviceGet")
        _require(name(text, _BUS_ID_BYTES, device.value), "cuDeviceGetPCIBusId")
        return text.value


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


@dataclass(frozen=True)
class Usage:
    """Bytes of a whole device."""

    total_bytes: int
    free_bytes: int


class Monitor:
    """What NVML says of one device, found by its bus id. Raises DeviceError where NVML is not there or refuses."""

    def __init__(self, bus_id: bytes, library: str = NVML_LIBRARY) -> None:
        nvml = _open(library)
        self._memory = _function(nvml, "nvmlDeviceGetMemoryInfo", ctypes.c_void_p, ctypes.c_void_p)
        self._processes = _function(
            nvml, "nvmlDeviceGetComputeRunningProcesses_v3", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
        )
        find = _function(nvml, "nvmlDeviceGetHandleByPciBusId_v2", ctypes.c_char_p, ctypes.c_void_p)
        self._handle = ctypes.c_void_p(0)
        _require(_function(nvml, "nvmlInit_v2")(), "nvmlInit")
        _require(find(bus_id, ctypes.addressof(self._handle)), "nvmlDeviceGetHandleByPciBusId")

    def usage(self) -> Usage:
        """The device's memory now."""
        memory = _Memory()
        _require(self._memory(self._handle, ctypes.addressof(memory)), "nvmlDeviceGetMemoryInfo")
        return Usage(int(memory.total), int(memory.free))

    def process_bytes(self, pid: int | None = None) -> int | None:
        """What a process (None: this one) holds; None where NVML does not say, as in a container with process numbers
        of its own."""
        count = ctypes.c_uint(_MOST_PROCESSES)
        processes = (_Process * _MOST_PROCESSES)()
        if self._processes(self._handle, ctypes.addressof(count), ctypes.addressof(processes)) != 0:
            return None
        for process in processes[: count.value]:
            # All bits set is "not available".
            if process.pid == (pid or os.getpid()) and process.used != 2**64 - 1:
                return int(process.used)
        return None


def _open(library: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(library)
    except OSError as error:
        raise DeviceError(f"the NVIDIA driver cannot be used ({error})") from None


def _function(library: ctypes.CDLL, name: str, *arguments: Any) -> Any:
    try:
        function = getattr(library, name)
    except AttributeError:
        raise DeviceError(f"the NVIDIA driver is too old: it has no {name}") from None
    function.restype = ctypes.c_int
    function.argtypes = arguments
    return function


def _require(code: int, name: str) -> None:
    if code != 0:
        raise DeviceError(f"the NVIDIA driver refuses {name} (error {code})")
