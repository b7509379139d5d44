"""The commands that write files, each on a tiny model: how it is called, and what may be found after it was killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers_models import FIXTURES
from helpers_predictable import write_predictable, write_text
from safetensors.numpy import load_file

from powerinfer_py.placement.statistics.profile import decode_profile
from powerinfer_py.profiler.folder import PROFILE_NAME, STATE_NAME
from powerinfer_py.tensor_files import load_state, load_tensor

BEFORE = b"what was there before"


@dataclass(frozen=True)
class Tool:
    """command: the module below powerinfer_py.cli. argv: from a folder of inputs and the output.

    check(output, whole): asserts that all that lies under a final name is whole; `whole` is what a run makes that
    nobody disturbs. n_outputs: names that the output has.
    """

    command: str
    argv: Callable[[Path, Path], list[str]]
    check: Callable[[Path, Path], None]
    is_folder: bool


def make_inputs(folder: Path) -> Path:
    """A model whose neurons can be learned, and a text."""
    write_predictable(folder / "model.gguf")
    write_text(folder / "text.txt", 400)
    return folder


def is_before_or_whole(output: Path, whole: Path) -> None:
    assert output.read_bytes() in (BEFORE, whole.read_bytes())


def has_whole_statistics(output: Path, whole: Path) -> None:
    del whole
    for path in output.glob("activation_*.pt"):
        assert load_tensor(path).dim() == 1
    for name in (PROFILE_NAME, STATE_NAME):
        if (output / name).exists():
            decode_profile(output / name)


def has_whole_predictors(output: Path, whole: Path) -> None:
    del whole
    for path in output.glob("*.pt"):
        assert sorted(load_state(path)) == ["fc1.weight", "fc2.weight"]
    for path in output.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in output.glob("*.safetensors"):
        load_file(path)
    if (output / "config.json").exists():
        assert (output / "model_1.pt").exists()


def _convert(inputs: Path, output: Path) -> list[str]:
    del inputs
    return [str(FIXTURES / "bamboo"), str(FIXTURES / "bamboo-predictor"), "--outfile", str(output)]


def _quantize(inputs: Path, output: Path) -> list[str]:
    del inputs
    return [str(FIXTURES / "relu-llama.powerinfer.gguf"), str(output), "Q4_0", "--threads", "1"]


def _profile(inputs: Path, output: Path) -> list[str]:
    argv = ["-m", str(inputs / "model.gguf"), "-f", str(inputs / "text.txt"), "-o", str(output)]
    return [*argv, "-c", "32", "-t", "1", "--json"]


def _train(inputs: Path, output: Path) -> list[str]:
    argv = ["-m", str(inputs / "model.gguf"), "-f", str(inputs / "text.txt"), "-o", str(output)]
    return [*argv, "--tokens", "320", "--window", "32", "--epochs", "1", "--rank", "4", "-t", "1"]


def _gpuidx(inputs: Path, output: Path) -> list[str]:
    # Rates that are given, for those measured differ from run to run and stand in the file.
    rates = ["--gpu-bandwidth", "360", "--cpu-bandwidth", "60"]
    return ["-m", str(inputs / "model.gguf"), "--neurons", "0.4", "-o", str(output), *rates]


TOOLS = {
    "convert": Tool("convert", _convert, is_before_or_whole, is_folder=False),
    "quantize": Tool("quantize", _quantize, is_before_or_whole, is_folder=False),
    "gpuidx": Tool("gpuidx", _gpuidx, is_before_or_whole, is_folder=False),
    "profile": Tool("profile", _profile, has_whole_statistics, is_folder=True),
    "train-predictors": Tool("train_predictors", _train, has_whole_predictors, is_folder=True),
}


def content(output: Path) -> dict[str, bytes]:
    """Every file of an output by its name, the record of a training apart, which says what it was called with."""
    if not output.is_dir():
        return {"": output.read_bytes()}
    files = (path for path in output.iterdir() if path.is_file() and path.name != "training.json")
    return {path.name: path.read_bytes() for path in sorted(files)}
