from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_logits import FIXTURES

from powerinfer_py.errors import PowerInferError
from powerinfer_py.placement.statistics.layer_files import captured_shares, read_activations

FOLDER = FIXTURES / "relu-llama-activation"


def test_layers_come_by_number() -> None:
    layers = read_activations(FOLDER, n_layer=12, n_ff=1024)
    for i, counts in enumerate(layers):
        expected = torch.load(FOLDER / f"activation_{i}.pt", weights_only=True).double().numpy()
        assert np.array_equal(counts, expected)
    assert len(layers) == 12


def test_hot_set_of_the_fixture() -> None:
    """The hottest 3/8 of all neurons capture 96.4 % of the recorded activations."""
    captured = captured_shares(np.concatenate(read_activations(FOLDER)))
    assert captured[len(captured) * 3 // 8] == pytest.approx(0.964, abs=5e-4)


def test_captured_shares() -> None:
    assert captured_shares(np.array([1.0, 3.0, 0.0])).tolist() == [0.0, 0.75, 1.0, 1.0]
    assert captured_shares(np.zeros(2)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("activation_1.pt", torch.zeros(1023)),
        ("activation_1.pt", torch.zeros(1, 1024)),
        ("activation_1.pt", torch.full((1024,), float("nan"))),
        ("activation_1.pt", torch.full((1024,), -1)),
        ("activation_1.pt", torch.zeros(1024, dtype=torch.complex64)),
        ("activation_12.pt", torch.zeros(1024)),
        ("activation_1.pt", None),
    ],
    ids=["width", "rank", "nan", "negative", "complex", "one too many", "missing"],
)
def test_refused(name: str, tensor: torch.Tensor | None, tmp_path: Path) -> None:
    folder = tmp_path / "with spaces; and 'quotes'"
    shutil.copytree(FOLDER, folder)
    (folder / name).unlink(missing_ok=True)
    if tensor is not None:
        torch.save(tensor, folder / name)
    with pytest.raises(PowerInferError):
        read_activations(folder, n_layer=12, n_ff=1024)


def test_no_folder_or_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(PowerInferError, match="no such folder"):
        read_activations(tmp_path / "nothing")
    with pytest.raises(PowerInferError, match="no activation"):
        read_activations(tmp_path)
