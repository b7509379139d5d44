"""tools/generate_gpuidx.py: the flags of PowerInfer's own solver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers_logits import FIXTURES

from powerinfer_py.placement.gpuidx import load_gpu_index

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "tools" / "generate_gpuidx.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def test_powerinfers_flags_make_its_file(tmp_path: Path) -> None:
    output = tmp_path / "m.gguf.generated.gpuidx"
    figures = ("--neuron", 1024, "--layer", 12, "--capacity", 4608, "--vram-capacity", 10**9, "--batch", 64)
    done = run("--activation", FIXTURES / "relu-llama-activation", *figures, "--threshold", 0, "--output", output)
    assert done.returncode == 0, done.stderr
    index = load_gpu_index(output, 12, 1024)
    assert index.solved_for is None
    assert index.vram_capacity == 10**9
    assert sum(ids.size for ids in index.hot) == 4608
    assert {ids.size % 64 for ids in index.hot} == {0}
    # PowerInfer's own exporter captures 48.3 % with as many, because it sorts layer 10 before layer 2.
    assert float(done.stdout.split("neurons, ")[1].split("%")[0]) >= 96.0


def test_figures_that_contradict_the_files_are_refused(tmp_path: Path) -> None:
    figures = ("--neuron", 2048, "--layer", 12, "--vram-capacity", 1, "--output", tmp_path / "o")
    done = run("--activation", FIXTURES / "relu-llama-activation", *figures)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o").exists()
