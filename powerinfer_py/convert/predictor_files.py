"""The predictors of a folder: `model_{i}.pt` for layer i, or all layers in `predictors.safetensors`; and its threshold.

A folder with both is read by its `.pt` files, as PowerInfer reads it; training writes the same numbers to both. The
folder comes from a stranger: nothing in it is executed. What shapes a model needs is not judged here.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from powerinfer_py.convert.checkpoint.safetensors_file import read_safetensors, read_safetensors_metadata
from powerinfer_py.convert.checkpoint.stored_tensor import StoredTensor
from powerinfer_py.convert.regular_file import open_regular
from powerinfer_py.errors import FileFormatError, printable
from powerinfer_py.gguf import keys
from powerinfer_py.tensor_files import load_state

if TYPE_CHECKING:
    from torch import Tensor

ALL_LAYERS = "predictors.safetensors"
CONFIG = "config.json"
# The one entry of the safetensors file's metadata: a JSON object, `sparse_threshold` in it.
ABOUT = "predictors"
NAMES = ("fc1.weight", "fc2.weight")

_LAYER_FILE = re.compile(r"model_(\d+)\.pt")
_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.fc[12]\.weight")
_MAX_CONFIG_BYTES = 1 << 20
_MAX_THRESHOLD = 3e38


@dataclass(frozen=True)
class LayerFile:
    """Where the predictor of one layer lies. layer: None in a file of its own, whose names carry no number."""

    path: Path
    layer: int | None = None

    def load(self) -> tuple[Tensor, Tensor]:
        """`fc1` and `fc2`, matrices of floats of any type. Raises FileFormatError or UnsupportedError."""
        state = load_state(self.path) if self.layer is None else _load_of_all(self.path, self.layer)
        for name in NAMES:
            tensor = state.get(name)
            if tensor is None:
                raise FileFormatError(f"tensor {name} is missing{self._place}", path=self.path)
            if tensor.ndim != 2 or not tensor.is_floating_point():
                raise FileFormatError(
                    f"{name}{self._place} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected a matrix of "
                    "floats",
                    path=self.path,
                )
        return state[NAMES[0]], state[NAMES[1]]

    @property
    def _place(self) -> str:
        return "" if self.layer is None else f" in layer {self.layer}"


def find_layers(folder: Path) -> dict[int, LayerFile]:
    """Every layer of which there is something. Raises FileFormatError where folder or file cannot be read."""
    try:
        names = [path.name for path in folder.iterdir()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no possible folder name"
        raise FileFormatError(f"cannot read the predictor folder: {reason}", path=folder) from None
    numbers = {int(match[1]) for name in names if (match := _LAYER_FILE.fullmatch(name))}
    if numbers:
        return {layer: LayerFile(folder / f"model_{layer}.pt") for layer in numbers}
    if ALL_LAYERS not in names:
        return {}
    path = folder / ALL_LAYERS
    found = {int(match[1]) for name in read_safetensors(path) if (match := _LAYER_TENSOR.fullmatch(name))}
    return {layer: LayerFile(path, layer) for layer in found}


def stated_threshold(folder: Path) -> float | None:
    """What `config.json` states, else what the one file of all layers does where that is what is read; None for none.

    Raises FileFormatError for a value that is no finite number.
    """
    path = folder / CONFIG
    value = _threshold(path, _config(path)) if path.exists() else None
    if value is None and any(file.layer is not None for file in find_layers(folder).values()):
        value = _threshold(folder / ALL_LAYERS, _about(folder / ALL_LAYERS))
    return value


def _load_of_all(path: Path, layer: int) -> dict[str, Tensor]:
    stored = read_safetensors(path)
    wanted = {name: stored.get(keys.block_tensor(layer, name)) for name in NAMES}
    return {name: _as_torch(tensor) for name, tensor in wanted.items() if tensor is not None}


def _as_torch(tensor: StoredTensor) -> Tensor:
    """A copy. Raises UnsupportedError for elements other than F32, F16 and BF16."""
    import torch

    words = tensor.words()
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]
    # torch has no unsigned words of these widths in every version.
    return torch.from_numpy(words.astype(np.int32 if words.itemsize == 4 else np.int16)).view(dtype)


def _config(path: Path) -> Any:
    try:
        with open_regular(path) as file:
            return json.loads(file.read(_MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError):
        raise FileFormatError("cannot be read as JSON", path=path) from None


def _about(path: Path) -> Any:
    text = read_safetensors_metadata(path).get(ABOUT, "{}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FileFormatError(f"its metadata '{ABOUT}' cannot be read as JSON", path=path) from None


def _threshold(path: Path, settings: Any) -> float | None:
    value = settings.get("sparse_threshold") if isinstance(settings, dict) else None
    if value is None:
        return None
    # A float32 in the file; the comparison also refuses NaN, and integers that are no float at all.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _MAX_THRESHOLD:
        raise FileFormatError(f"sparse_threshold is {printable(repr(value))}, expected a finite number", path=path)
    return float(value)
