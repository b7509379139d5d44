"""Predictor folders: read layer by layer in the order of numbers, held against the model, never executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from powerinfer_py.convert.predictor_tensors import read_predictors
from powerinfer_py.errors import FileFormatError, ModelError, PowerInferError
from powerinfer_py.gguf import GGMLType
from powerinfer_py.gguf.quantisation import quantize


def write_layer(folder: Path, layer: int, rank: int = 3, n_embd: int = 8, n_ff: int = 16, **changes: object) -> None:
    generator = torch.Generator().manual_seed(layer)
    state: dict[str, object] = {
        "fc1.weight": torch.randn(rank, n_embd, generator=generator),
        "fc2.weight": torch.randn(n_ff, rank, generator=generator),
    }
    for name, value in changes.items():
        state[f"{name}.weight"] = value
    torch.save({name: value for name, value in state.items() if value is not None}, folder / f"model_{layer}.pt")


def test_twelve_layers_in_the_order_of_numbers(tmp_path: Path) -> None:
    for layer in range(12):
        write_layer(tmp_path, layer, rank=layer + 1)
    (tmp_path / "config.json").write_text(json.dumps({"sparse_threshold": 0.5}))
    (tmp_path / "model_x.pt").write_text("not a layer")
    predictors = read_predictors(tmp_path, 12, 8, 16)
    assert predictors.ranks == tuple(range(1, 13))
    assert predictors.sparse_threshold == 0.5
    tensors = predictors.tensors(lambda _cols: GGMLType.F32, quantize)
    assert [t.name for t in tensors[-2:]] == ["blk.11.fc1.weight", "blk.11.fc2.weight"]
    assert [t.shape for t in tensors[4:6]] == [(3, 8), (16, 3)]
    (chunk,) = tensors[5].chunks()
    state = torch.load(tmp_path / "model_2.pt", weights_only=True)
    np.testing.assert_array_equal(np.asarray(chunk).view("<f4").reshape(16, 3), state["fc2.weight"].numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_of_floats(dtype: torch.dtype, tmp_path: Path) -> None:
    fc1 = torch.tensor([[0.5, -1.5]], dtype=dtype)
    write_layer(tmp_path, 0, n_embd=2, n_ff=4, fc1=fc1, fc2=torch.ones(4, 1, dtype=dtype))
    tensors = read_predictors(tmp_path, 1, 2, 4).tensors(lambda _cols: GGMLType.F16, quantize)
    (chunk,) = tensors[0].chunks()
    assert np.asarray(chunk).view("<f2").tolist() == [0.5, -1.5]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"fc1": torch.ones(3, 9)}, r"fc1 of layer 1 has shape \(3, 9\), the model's layer needs \(3, 8\)"),
        ({"fc2": torch.ones(15, 3)}, r"fc2 of layer 1 has shape \(15, 3\), the model's layer needs \(16, 3\)"),
        ({"fc2": torch.ones(16, 4)}, r"fc2 of layer 1 has shape \(16, 4\)"),
        ({"fc1": torch.ones(0, 8), "fc2": torch.ones(16, 0)}, "fc1 of layer 1 has shape"),
        ({"fc1": torch.full((3, 8), torch.nan)}, "fc1 of layer 1 holds NaN or infinite values"),
        ({"fc1": torch.ones(3, 8, dtype=torch.int64)}, "expected a matrix of floats"),
        ({"fc1": torch.ones(24)}, "expected a matrix of floats"),
        ({"fc2": None}, r"tensor fc2\.weight is missing"),
        ({"fc1": "text"}, "expected a tensor"),
    ],
)
def test_layers_that_do_not_fit(changes: dict[str, object], match: str, tmp_path: Path) -> None:
    write_layer(tmp_path, 0)
    write_layer(tmp_path, 1, **changes)  # type: ignore[arg-type]
    with pytest.raises(PowerInferError, match=match):
        read_predictors(tmp_path, 2, 8, 16)


def test_layers_missing_and_too_many(tmp_path: Path) -> None:
    write_layer(tmp_path, 0)
    write_layer(tmp_path, 2)
    with pytest.raises(ModelError, match="no predictor for layer 1, the model has 3 layers"):
        read_predictors(tmp_path, 3, 8, 16)
    (tmp_path / "model_2.pt").unlink()
    write_layer(tmp_path, 1)
    with pytest.raises(ModelError, match="a predictor for layer 1, the model has 1 layers"):
        read_predictors(tmp_path, 1, 8, 16)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc1.weight": Evil()}, tmp_path / "model_0.pt")
    with pytest.raises(FileFormatError):
        read_predictors(tmp_path, 1, 8, 16)
    (tmp_path / "model_0.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(FileFormatError):
        read_predictors(tmp_path, 1, 8, 16)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("text", ["{", "[" * 10000, '{"sparse_threshold": "x"}', '{"sparse_threshold": NaN}'])
def test_a_broken_config(text: str, tmp_path: Path) -> None:
    write_layer(tmp_path, 0)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"config\.json: (cannot be read as JSON|sparse_threshold is)"):
        read_predictors(tmp_path, 1, 8, 16)


def test_no_threshold(tmp_path: Path) -> None:
    write_layer(tmp_path, 0)
    assert read_predictors(tmp_path, 1, 8, 16).sparse_threshold is None
    (tmp_path / "config.json").write_text("[]")
    assert read_predictors(tmp_path, 1, 8, 16).sparse_threshold is None
