"""Activation folders as PowerInfer has them: `activation_{i}.pt`, one tensor of n_ff counts for layer i.

Layers are ordered by number: PowerInfer's exporter orders them as text and puts layer 10 before layer 2.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import FileFormatError, ModelError
from powerinfer_py.tensor_files import load_tensor

_NAME = re.compile(r"activation_(0|[1-9]\d*)\.pt")


def read_activations(
    folder: Path, n_layer: int | None = None, n_ff: int | None = None
) -> list[npt.NDArray[np.float64]]:
    """Counts per layer, float64 (n_ff) each, finite and not negative, layer 0 first.

    n_layer, n_ff: what the model has, where known. Raises FileFormatError for a file that is no such tensor, ModelError
    where layers are missing or do not fit the model.
    """
    if not folder.is_dir():
        raise FileFormatError("no such folder", path=folder)
    files = layer_files(folder)
    if not files:
        raise FileFormatError("no activation_{i}.pt in this folder", path=folder)
    expected = max(files) + 1 if n_layer is None else n_layer
    if missing := sorted(set(range(expected)) - set(files)):
        raise ModelError(f"activation statistics lack layer {missing[0]} ({len(missing)} of {expected} missing)")
    if len(files) > expected:
        raise ModelError(f"activation statistics have layer {max(files)}, the model only {expected} layers")
    return [_read_layer(files[layer], n_ff) for layer in range(expected)]


def layer_files(folder: Path) -> dict[int, Path]:
    """The `activation_{i}.pt` of a folder by layer; empty where there is no such folder."""
    if not folder.is_dir():
        return {}
    return {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}


def _read_layer(path: Path, n_ff: int | None) -> npt.NDArray[np.float64]:
    tensor = load_tensor(path)
    if tensor.dim() != 1 or tensor.is_complex() or (n_ff is not None and len(tensor) != n_ff):
        wanted = "n_ff" if n_ff is None else str(n_ff)
        raise ModelError(f"{path.name} has shape {tuple(tensor.shape)}, expected ({wanted},) real numbers")
    counts: npt.NDArray[np.float64] = tensor.double().numpy()
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise FileFormatError("counts must be finite and not negative", path=path)
    return counts


def captured_shares(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of all activations that the k most active neurons capture, for k = 0 .. n_ff: float64 (n_ff + 1).

    All zero for a layer that never fired.
    """
    cumulative = np.concatenate([[0.0], np.cumsum(np.sort(counts)[::-1])])
    total = cumulative[-1]
    return cumulative / total if total > 0 else cumulative
