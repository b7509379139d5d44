"""What a process does when a mapped file loses the bytes that are being read. Without the native extension: nothing."""

from __future__ import annotations

from powerinfer_py.errors import DeviceError
from powerinfer_py.kernels.selection import native_extension


def report_file_faults() -> bool:
    """Makes such a process end with exit code 1 and one line that names the file, rather than die of SIGBUS.

    False where the extension is missing, or where somebody else handles SIGBUS, whose handler stays.
    """
    try:
        extension = native_extension()
    except DeviceError:
        # An extension that does not load is an error of whoever computes with it.
        return False
    return extension is not None and bool(extension.report_file_faults())
