"""Both forms of predictors in a folder, the threshold that goes with them, and safetensors files that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from powerinfer_py.convert.predictor_files import ABOUT, ALL_LAYERS, CONFIG, find_layers, stated_threshold
from powerinfer_py.convert.predictor_tensors import read_predictors
from powerinfer_py.errors import FileFormatError, ModelError, PowerInferError
from powerinfer_py.gguf import GGMLType
from powerinfer_py.gguf.quantisation import quantize

N_EMBD, N_FF = 8, 16


def layer_state(layer: int, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(layer)
    shapes = {"fc1.weight": (layer + 1, N_EMBD), "fc2.weight": (N_FF, layer + 1)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_all(
    folder: Path,
    n_layer: int = 2,
    dtype: torch.dtype = torch.float16,
    about: str | None = None,
    **changes: torch.Tensor | None,
) -> None:
    """The one file of all layers; changes: of tensors of layer 1, None leaves one out."""
    tensors = {
        f"blk.{layer}.{name}": value for layer in range(n_layer) for name, value in layer_state(layer, dtype).items()
    }
    tensors |= {f"blk.1.{name}.weight": value for name, value in changes.items() if value is not None}
    for name in (name for name, value in changes.items() if value is None):
        del tensors[f"blk.1.{name}.weight"]
    save_file(tensors, folder / ALL_LAYERS, None if about is None else {ABOUT: about})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_file_of_twelve_layers(dtype: torch.dtype, tmp_path: Path) -> None:
    write_all(tmp_path, 12, dtype, about='{"sparse_threshold": 0.5}')
    predictors = read_predictors(tmp_path, 12, N_EMBD, N_FF)
    assert predictors.ranks == tuple(range(1, 13))
    assert predictors.sparse_threshold == 0.5
    tensors = predictors.tensors(lambda _cols: GGMLType.F32, quantize)
    for layer in range(12):
        for tensor, value in zip(tensors[2 * layer :], layer_state(layer, dtype).values(), strict=False):
            (chunk,) = tensor.chunks()
            stored = np.asarray(chunk).view("<f4").reshape(tensor.shape)
            np.testing.assert_array_equal(stored, value.float().numpy())


def test_files_of_layers_go_before_the_one_of_all(tmp_path: Path) -> None:
    write_all(tmp_path, 3, about='{"sparse_threshold": 0.5}')
    torch.save(layer_state(0), tmp_path / "model_0.pt")
    assert find_layers(tmp_path)[0].path == tmp_path / "model_0.pt"
    assert stated_threshold(tmp_path) is None
    assert read_predictors(tmp_path, 1, N_EMBD, N_FF).ranks == (1,)


@pytest.mark.parametrize(
    ("config", "about", "expected"),
    [
        (None, None, None),
        (None, "{}", None),
        (None, '{"sparse_threshold": 0.25}', 0.25),
        ({"sparse_threshold": 0.75}, '{"sparse_threshold": 0.25}', 0.75),
        ({"other": 1}, '{"sparse_threshold": 0.25}', 0.25),
    ],
)
def test_the_threshold_of_config_goes_first(
    config: dict[str, object] | None, about: str | None, expected: float | None, tmp_path: Path
) -> None:
    write_all(tmp_path, about=about)
    if config is not None:
        (tmp_path / CONFIG).write_text(json.dumps(config))
    assert read_predictors(tmp_path, 2, N_EMBD, N_FF).sparse_threshold == expected


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fc1": torch.ones(2, 9)}, r"fc1 of layer 1 has shape \(2, 9\), the model's layer needs \(2, 8\)"),
        ({"fc2": torch.ones(15, 2)}, r"fc2 of layer 1 has shape \(15, 2\)"),
        ({"fc1": torch.ones(0, 8), "fc2": torch.ones(16, 0)}, "fc1 of layer 1 has shape"),
        ({"fc1": torch.full((2, 8), torch.inf)}, "fc1 of layer 1 holds NaN or infinite values"),
        ({"fc1": torch.ones(16)}, r"fc1\.weight in layer 1 is .*expected a matrix of floats"),
        ({"fc1": torch.ones(2, 8, dtype=torch.int64)}, "type I64, expected F32, F16 or BF16"),
        ({"fc2": None}, r"tensor fc2\.weight is missing in layer 1"),
    ],
)
def test_layers_that_do_not_fit(changes: dict[str, torch.Tensor | None], match: str, tmp_path: Path) -> None:
    write_all(tmp_path, **changes)
    with pytest.raises(PowerInferError, match=match):
        read_predictors(tmp_path, 2, N_EMBD, N_FF)


def test_layers_missing_and_too_many(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no predictor for layer 0, the model has 1 layers"):
        read_predictors(tmp_path, 1, N_EMBD, N_FF)
    write_all(tmp_path, 2)
    with pytest.raises(ModelError, match="no predictor for layer 2, the model has 3 layers"):
        read_predictors(tmp_path, 3, N_EMBD, N_FF)
    with pytest.raises(ModelError, match="a predictor for layer 1, the model has 1 layers"):
        read_predictors(tmp_path, 1, N_EMBD, N_FF)


@pytest.mark.parametrize("about", ["{", "[" * 10000, '{"sparse_threshold": "x"}', '{"sparse_threshold": NaN}'])
def test_metadata_that_makes_no_sense(about: str, tmp_path: Path) -> None:
    write_all(tmp_path, about=about)
    with pytest.raises(FileFormatError, match=r"predictors\.safetensors: (its metadata|sparse_threshold is)"):
        read_predictors(tmp_path, 2, N_EMBD, N_FF)


def test_what_is_no_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / ALL_LAYERS
    header = json.dumps({"__metadata__": {ABOUT: 1}}).encode()
    for data in (b"", b"\0" * 7, b"\xff" * 16, len(header).to_bytes(8, "little") + header[:-1]):
        path.write_bytes(data)
        with pytest.raises(FileFormatError, match=r"predictors\.safetensors: "):
            find_layers(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileFormatError, match="no regular file"):
        find_layers(tmp_path)
