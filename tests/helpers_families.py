"""The model families that recipes are for, each as a small model of its kind with random weights."""

from __future__ import annotations

from pathlib import Path

from helpers_models import FIXTURES, edited_copy, write_opt

from powerinfer_py.gguf import ValueType

FAMILIES = ("bamboo", "demo", "falcon", "minicpm_s", "opt", "prosparse", "relu_llama")
FATRELU_THRESHOLDS = {"prosparse": 0.01, "minicpm_s": 0.03}
FIXTURE_OF = {"relu_llama": "relu-llama", "bamboo": "bamboo", "falcon": "relu-falcon", "demo": "relu-llama"}


def family_model(family: str, folder: Path) -> Path:
    """A fixture, or a model file made in `folder`."""
    if family == "opt":
        return write_opt(folder / "opt.gguf")
    if family in FATRELU_THRESHOLDS:
        values: dict[str, tuple[object, ValueType]] = {
            "powerinfer.activation": ("fatrelu", ValueType.STRING),
            "powerinfer.fatrelu_threshold": (FATRELU_THRESHOLDS[family], ValueType.FLOAT32),
        }
        return edited_copy(FIXTURES / "relu-llama.powerinfer.gguf", folder / "fat.gguf", values=values)
    return FIXTURES / f"{FIXTURE_OF[family]}.powerinfer.gguf"
