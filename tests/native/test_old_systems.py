"""The native module asks for no library newer than a wheel for old systems may have; its exceptions still travel."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys

import pytest

from powerinfer_py import _native

# What manylinux_2_27 allows: glibc 2.27 and the libstdc++ of GCC 7.
NEWEST = {"GLIBC": (2, 27), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="symbol versions are glibc's")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_no_newer_library_is_needed() -> None:
    assert _native.__file__ is not None
    symbols = subprocess.run(["objdump", "-T", _native.__file__], capture_output=True, text=True, check=True).stdout
    needed = {
        (name, tuple(map(int, number.split(".")))) for name, number in re.findall(r"\(([A-Z]+)_([\d.]+)\)", symbols)
    }
    assert {name for name, _ in needed} >= {"GLIBC", "GLIBCXX"}
    assert {(name, number) for name, number in needed if number > NEWEST[name]} == set()


def test_references_to_exceptions_are_counted() -> None:
    """Errors of the module pass through std::exception_ptr; a count that is wrong frees one twice or never."""
    code = (
        "from powerinfer_py import _native\n"
        "import resource\n"
        "def peak():\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for n in (2000, 20000):\n"
        "    for _ in range(n):\n"
        "        try: _native.CpuKernels('none', 1)\n"
        "        except ValueError: pass\n"
        "    if n == 2000: before = peak()\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # An exception that is never freed takes 200 bytes, 20,000 of them 4 MB.
    assert int(done.stdout) < 1000
