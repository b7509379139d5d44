"""Kernels compile for real GPUs without the interpreter, the hot ones without spilling; rules that they keep to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import powerinfer_py

ROOT = Path(__file__).parent.parent.parent.parent
KERNELS = Path(powerinfer_py.__file__).parent / "kernels" / "triton"
DEFINITION = re.compile(r"^def (\w+)_kernel\(", re.MULTILINE)


def sources() -> list[tuple[str, str]]:
    return [(path.name, path.read_text(encoding="utf-8")) for path in sorted(KERNELS.glob("*.py"))]


@pytest.mark.timeout(300)
def test_every_kernel_compiles_and_no_hot_one_spills(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    records = tmp_path / "records.json"
    command = [sys.executable, str(ROOT / "tools" / "record_triton_kernels.py"), "--quick", "--json", str(records)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    result = json.loads(records.read_text())
    defined = {name for _, text in sources() for name in DEFINITION.findall(text)}
    assert set(result["kernels"]) == defined
    assert result["spilled"] == []
    hot = {(record["kernel"], record["capability"]) for record in result["records"] if record["storage"] == "q4_0"}
    for kernel in ("linear", "hidden", "down"):
        assert {cc for name, cc in hot if name == kernel} == {75, 80, 86, 89, 90, 120}
    # What reads the cache in decode, in every width and number of heads to a key head.
    attention = [record["constants"] for record in result["records"] if record["kernel"] in ("chunk", "group")]
    for cache, widths in (("f16", {64, 80, 96, 128, 256}), ("q8_0", {64, 96, 128, 256})):
        theirs = [constants for constants in attention if constants["K_TYPE"] == cache]
        assert {constants["DIM"] for constants in theirs} == widths
        assert {constants["HEADS"] // constants["KV_HEADS"] for constants in theirs} >= {1, 2, 4, 7, 8}
    for record in result["records"]:
        assert 0 < record["registers"] <= 255
        # What a program may have on every one of these without asking for more.
        assert record["shared_bytes"] <= 99 * 1024


def test_the_recorder_refuses_the_interpreter() -> None:
    command = [sys.executable, str(ROOT / "tools" / "record_triton_kernels.py"), "--quick"]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("unset TRITON_INTERPRET: interpreted kernels are not compiled")


@pytest.mark.parametrize("word", ["inline_asm", "libdevice", "debug_barrier", "autotune", "tl.extra", "device_print"])
def test_what_kernels_do_without(word: str) -> None:
    # The package's docstring is where the rule stands.
    allowed = {"__init__.py"} | ({"overlap.py"} if word == "tl.extra" else set())
    assert [name for name, text in sources() if word in text and name not in allowed] == []


def test_atomics_count_and_nothing_else() -> None:
    uses = [line.strip() for _, text in sources() for line in text.splitlines() if "atomic_" in line]
    counting = re.compile(r'tl\.atomic_add\(counts( \+ \d)?, n_\w+\.to\(tl\.int64\), sem="relaxed"\)')
    assert len(uses) == 6
    assert all(counting.fullmatch(use) for use in uses)


def test_what_is_finite_is_not_asked_of_a_difference() -> None:
    """A product less itself becomes one instruction, whose result is the product's error: a GPU took it for NaN."""
    assert [name for name, text in sources() if re.search(r"\b(\w+) - \1\b", text)] == []


def test_kernels_that_may_be_launched_early_wait_first() -> None:
    found = []
    for _, text in sources():
        for match in re.finditer(
            r"^def (\w+_kernel)\((.*?)\):\n(.*?)(?=^\S)", text + "\nend", re.MULTILINE | re.DOTALL
        ):
            kernel, parameters, body = match.groups()
            if "EARLY: tl.constexpr" in parameters:
                behind = body[body.index('"""', body.index('"""') + 3) + 3 :]
                assert behind.lstrip().startswith("wait_for_kernel_ahead(EARLY)"), kernel
                found.append(kernel)
    assert len(found) == 12


def test_every_launch_goes_through_one_function() -> None:
    """Which names `enable_fp_fusion` and leaves early for an empty grid."""
    launches = [name for name, text in sources() if re.search(r"_?kernel\[", text)]
    assert launches == ["launch.py"]
    assert "enable_fp_fusion=fusion" in (KERNELS / "launch.py").read_text()


def test_nothing_is_recorded_that_was_not_measured_on_a_device() -> None:
    from powerinfer_py.kernels.triton import launch

    assert launch.RECORDED == {}
