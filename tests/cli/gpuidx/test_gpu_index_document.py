"""docs/gpu-index.md against the parser, in both directions, and against the keys of the file."""

from __future__ import annotations

import re
from pathlib import Path

from powerinfer_py.cli.gpuidx import build_parser
from powerinfer_py.gguf import keys
from powerinfer_py.placement import rates
from powerinfer_py.placement.budget import SAFETY_MARGIN_BYTES

DOCUMENT = (Path(__file__).parents[3] / "docs" / "gpu-index.md").read_text(encoding="utf-8")
# Flags of powerinfer-run and of the script, which the document names too.
ELSEWHERE = {"--gpu-index", "--reset-gpu-index", "--disable-gpu-index"}
SCRIPT = {"--neuron", "--capacity", "--layer", "--vram-capacity", "--batch", "--threshold"}


def test_every_option_is_described_and_none_is_invented() -> None:
    options = {name for action in build_parser()._actions for name in action.option_strings} - {"-h", "--help"}
    named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", DOCUMENT))
    assert options <= named
    long_names = {name for name in named if name.startswith("--")}
    assert long_names <= options | ELSEWHERE | SCRIPT


def test_every_key_is_described() -> None:
    ours = {value for name, value in vars(keys).items() if name.startswith("GPU_INDEX_") and "gpuidx." in value}
    assert ours - {keys.GPU_INDEX_PREFIX} == set(re.findall(r"powerinfer\.gpuidx\.\w+", DOCUMENT))


def test_stated_defaults_are_the_codes() -> None:
    for text in (
        f"{rates.ASSUMED_GPU_BYTES_PER_S / 1e9:.0f} GB/s",
        f"{rates.ASSUMED_SYNCHRONISE_S * 1e6:.0f} us",
        f"{rates.ASSUMED_CONTEXT_BYTES >> 20} MiB",
        f"less {SAFETY_MARGIN_BYTES >> 20} MiB",
    ):
        assert text in DOCUMENT
