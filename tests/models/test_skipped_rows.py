"""Rows of neurons that are not computed are not read: NaN in them changes no bit of a decode step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_logits import FIXTURES, TOKENS
from helpers_models import edited_copy, write_opt
from torch import Tensor

from powerinfer_py import LLM
from powerinfer_py.gguf import BLOCK_LAYOUTS, GGMLType, open_gguf
from powerinfer_py.kernels.matrix import Matrix

N_FF = 1024


class Masks:
    """Per layer, the neurons that a decode step predicted, whose gate fired, and that fired."""

    def __init__(self) -> None:
        self.predicted: dict[int, np.ndarray] = {}
        self.gate_fired: dict[int, np.ndarray] = {}
        self.fired: dict[int, np.ndarray] = {}

    def listen(self, llm: LLM) -> None:
        """The up rows asked for behind a gate; with dReLU they are more than the neurons that fire in the end."""
        kernels = llm.engine.kernels
        linear_masked = kernels.linear_masked

        def heard(matrix: Matrix, x: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, int]:
            if matrix.name.endswith("ffn_up.weight"):
                self.gate_fired[int(matrix.name.split(".")[1])] = mask.numpy()[0].copy()
            return linear_masked(matrix, x, mask, bias)

        kernels.linear_masked = heard

    def __call__(self, layer: int, _x: object, predicted: object, fired: object) -> None:
        if predicted is not None:
            self.predicted[layer] = predicted.numpy()[0].copy()
        self.fired[layer] = fired.numpy()[0].copy()


def poison(data: np.ndarray, ggml_type: GGMLType, rows: np.ndarray) -> np.ndarray:
    """NaN in the given rows: every float16 scale or weight of the row becomes one."""
    layout = BLOCK_LAYOUTS[ggml_type]
    table = data.reshape(N_FF, -1, layout.n_bytes)
    nan = np.frombuffer(np.float32(np.nan).tobytes() if layout.n_bytes == 4 else np.float16(np.nan).tobytes(), np.uint8)
    table[rows, :, : len(nan)] = nan
    return data


def poisoned_model(source: Path, target: Path, masks: Masks, sparsity: str) -> Path:
    with open_gguf(source) as file:
        infos = dict(file.tensors)

    def edit(name: str, data: np.ndarray) -> np.ndarray:
        parts = name.split(".")
        kind = parts[2] if parts[0] == "blk" and parts[3] == "weight" else ""
        if kind not in ("ffn_gate", "ffn_up", "ffn_down_t"):
            return data
        layer = int(parts[1])
        first = "ffn_gate" if f"blk.{layer}.ffn_gate.weight" in infos else "ffn_up"
        if sparsity == "predictor":
            dropped = ~masks.predicted[layer]
        elif kind == first:
            return data
        else:
            # Without a gate the up row is read first, and the down row alone depends on whether it fired.
            dropped = ~(masks.gate_fired if kind == "ffn_up" else masks.fired)[layer]
        assert dropped.any()
        return poison(data, infos[name].ggml_type, np.flatnonzero(dropped))

    return edited_copy(source, target, edit)


def decode_step(path: Path, sparsity: str, masks: Masks | None, listen: bool = False) -> np.ndarray:
    with LLM(path, sparsity=sparsity, threads=2) as llm:
        if masks is not None and listen:
            masks.listen(llm)
        return llm.logits(TOKENS[:1], observer=masks)


def dropped_neurons(masks: Masks) -> None:
    for mask in masks.predicted.values():
        assert 0 < mask.sum() < N_FF


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("sparsity", ["predictor", "exact"])
@pytest.mark.parametrize("name", ["relu-llama", "relu-llama.q4", "bamboo", "relu-falcon.q4", "opt"])
def test_unread(name: str, sparsity: str, kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_opt(tmp_path / "opt.gguf") if name == "opt" else FIXTURES / f"{name}.powerinfer.gguf"
    masks, reference = Masks(), Masks()
    # The reference makes one call an operation, in which the rows asked for behind the gate can be heard.
    monkeypatch.setenv("POWERINFER_KERNELS", "torch")
    decode_step(source, sparsity, reference, listen=True)
    monkeypatch.setenv("POWERINFER_KERNELS", kernels)
    expected = decode_step(source, sparsity, masks)
    # With dReLU alone the gate lets more neurons through than fire in the end.
    masks.gate_fired = reference.gate_fired if name == "bamboo" else masks.fired
    dropped_neurons(masks)
    target = poisoned_model(source, tmp_path / "poisoned.gguf", masks, sparsity)
    actual = decode_step(target, sparsity, None)
    assert np.array_equal(actual, expected)
    assert np.isfinite(actual).all()
    # The same file run dense shows that the poison is there to be read.
    assert np.isnan(decode_step(target, "dense", None)).any()


@pytest.mark.parametrize("name", ["relu-llama", "bamboo.q4", "relu-falcon"])
def test_counts_agree_with_masks(name: str) -> None:
    """In a decode step the rows read first are those predicted, the others those that fired."""
    masks = Masks()
    with LLM(FIXTURES / f"{name}.powerinfer.gguf", threads=2) as llm:
        llm.logits(TOKENS[:1], observer=masks)
        activity = llm.stats.activity
        assert activity.first.tolist() == [int(masks.predicted[i].sum()) for i in sorted(masks.predicted)]
        assert activity.fired.tolist() == [int(masks.fired[i].sum()) for i in sorted(masks.fired)]
        assert (activity.down <= activity.first).all()
        assert (activity.down >= activity.fired * 0.99).all()
