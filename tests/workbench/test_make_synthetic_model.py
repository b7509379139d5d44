"""The maker of synthetic models: what was asked for is what the kernels count, in every type and architecture."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.gguf import GGMLType, open_gguf
from powerinfer_py.gguf.quants import dequantize
from powerinfer_py.gguf.types import BLOCK_LAYOUTS

TOOLS = Path(__file__).parent.parent.parent / "tools"
N_VOCAB = 1000
SMALL = ["--n-embd", "256", "--n-ff", "2048", "--n-head", "4", "--n-head-kv", "2", "--layers", "2", "--rank", "320"]
WIDE = ["--n-embd", "768", "--n-ff", "2048", "--n-head", "4", "--n-head-kv", "2", "--layers", "1", "--rank", "544"]
TOKENS = np.random.default_rng(0).integers(259, N_VOCAB, 64).tolist()
TOLERANCE = 0.01


@pytest.fixture(autouse=True)
def tools_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def tool(name: str) -> ModuleType:
    return importlib.import_module(name)


def make(folder: Path, *arguments: str, shape: list[str] = SMALL) -> Path:
    path = folder / "made.powerinfer.gguf"
    command = [str(path), "--n-vocab", str(N_VOCAB), *shape, *arguments]
    assert tool("make_synthetic_model").main(command) == 0
    return path


def observe(path: Path, mode: str) -> dict[str, Any]:
    """Counts and masks of one forward over 64 different tokens; masks are (layers, tokens, n_ff)."""
    fired_masks, predicted_masks, residuals = [], [], []

    def observer(_layer: int, x: Any, predicted: Any, fired: Any) -> None:
        residuals.append(x.numpy().copy())
        fired_masks.append(fired.numpy().copy())
        predicted_masks.append(fired_masks[-1] if predicted is None else predicted.numpy().copy())

    with LLM(path, sparsity=mode, threads=2) as llm:
        logits = llm.logits(TOKENS, observer=observer)
        activity = llm.engine.activity
        assert np.isfinite(logits).all()
        return {
            "computed": activity.share_computed,
            "fired": activity.share_fired,
            "logits": logits,
            "fired_masks": np.stack(fired_masks),
            "predicted_masks": np.stack(predicted_masks),
            "residuals": np.stack(residuals),
        }


def recall(seen: dict[str, Any], exact: dict[str, Any]) -> float:
    """Of the neurons that fire, the share that the predictor named."""
    fires = exact["fired_masks"]
    return float((seen["predicted_masks"] & fires).sum() / fires.sum())


@pytest.mark.parametrize("weight_type", ["q4_0", "f16"])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 1.0])
def test_share_asked_for_is_share_counted(tmp_path: Path, share: float, weight_type: str) -> None:
    path = make(tmp_path, "--active", str(share), "--type", weight_type)
    predicted, exact = observe(path, "predictor"), observe(path, "exact")
    assert predicted["computed"] == pytest.approx(share, abs=TOLERANCE)
    assert exact["fired"] == pytest.approx(share, abs=TOLERANCE)
    assert exact["computed"] == 1.0
    assert recall(predicted, exact) > 0.85


@pytest.mark.parametrize("architecture", ["bamboo", "opt", "falcon", "arcee"])
def test_architectures(tmp_path: Path, architecture: str) -> None:
    path = make(tmp_path, "--architecture", architecture)
    predicted, exact = observe(path, "predictor"), observe(path, "exact")
    assert predicted["computed"] == pytest.approx(0.1, abs=TOLERANCE)
    assert exact["fired"] == pytest.approx(0.1, abs=TOLERANCE)
    assert recall(predicted, exact) > 0.85


@pytest.mark.parametrize("weight_type", ["f32", "bf16", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"])
def test_other_types(tmp_path: Path, weight_type: str) -> None:
    path = make(tmp_path, "--type", weight_type, shape=WIDE if weight_type.endswith("_k") else SMALL)
    with open_gguf(path) as file:
        assert file.tensors["blk.0.ffn_gate.weight"].ggml_type is GGMLType[weight_type.upper()]
    predicted, exact = observe(path, "predictor"), observe(path, "exact")
    assert predicted["computed"] == pytest.approx(0.1, abs=TOLERANCE)
    assert exact["fired"] == pytest.approx(0.1, abs=TOLERANCE)


def test_active_sets_change_and_some_neurons_are_hot(tmp_path: Path) -> None:
    masks = observe(make(tmp_path), "exact")["fired_masks"]
    for layer in masks:
        both = (layer[:-1] & layer[1:]).sum(axis=1)
        either = (layer[:-1] | layer[1:]).sum(axis=1)
        assert 0.1 < (both / either).mean() < 0.7
        often = np.sort(layer.mean(axis=0))[::-1]
        assert often[: len(often) * 43 // 100].sum() / often.sum() > 0.75
        assert (often > 0).mean() > 0.5
    assert (masks[0] != masks[1]).any()


def test_constant_channels_stay_constant(tmp_path: Path) -> None:
    residuals = observe(make(tmp_path, "--layers", "4"), "predictor")["residuals"]
    assert (residuals[:, :, :32] == residuals[0, 0, 0]).all()
    # The other channels do not stay as they are.
    assert not np.array_equal(residuals[0, :, 32:], residuals[3, :, 32:])


def test_greedy_text_walks_through_the_vocabulary(tmp_path: Path) -> None:
    twin = tmp_path / "twin.gguf"
    for path in (make(tmp_path, "--dense-twin", str(twin)), twin):
        with LLM(path, threads=2) as llm:
            params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
            (completion,) = llm.generate([[1, N_VOCAB - 3]], params)
            assert list(completion.token_ids) == [N_VOCAB - 2, N_VOCAB - 1, 259, 260]


def test_dense_twin(tmp_path: Path) -> None:
    twin = tmp_path / "twin.gguf"
    path = make(tmp_path, "--dense-twin", str(twin), "--type", "q8_0")
    with open_gguf(path) as sparse, open_gguf(twin) as dense:
        assert (sparse.magic, dense.magic) == ("PWRI", "GGUF")
        assert dense.tensors["blk.0.ffn_down.weight"].shape == (256, 2048)
        common = set(sparse.tensors) & set(dense.tensors)
        assert {name.split(".")[-2] for name in set(sparse.tensors) - common} == {"fc1", "fc2", "ffn_down_t"}
        assert {name.split(".")[-2] for name in set(dense.tensors) - common} == {"ffn_down"}
        for name in common:
            assert sparse.tensors[name].shape == dense.tensors[name].shape
            assert sparse.tensors[name].ggml_type is dense.tensors[name].ggml_type


@pytest.mark.parametrize("architecture", ["bamboo", "opt", "falcon", "arcee"])
def test_dense_twins_run(tmp_path: Path, architecture: str) -> None:
    twin = tmp_path / "twin.gguf"
    make(tmp_path, "--architecture", architecture, "--dense-twin", str(twin))
    with LLM(twin, sparsity="dense", threads=2) as llm:
        assert llm.config.architecture == ("llama" if architecture == "bamboo" else architecture)
        assert (llm.logits([300, 400]).argmax(axis=1) == [301, 401]).all()


def test_ranks_take_turns_and_seeds_tell_models_apart(tmp_path: Path) -> None:
    path = make(tmp_path, "--rank", "320,352", "--layers", "3", "--seed", "5")
    with open_gguf(path) as file:
        assert [file.tensors[f"blk.{i}.fc1.weight"].shape[0] for i in range(3)] == [320, 352, 320]
    first = path.read_bytes()
    assert make(tmp_path, "--rank", "320,352", "--layers", "3", "--seed", "5").read_bytes() == first
    assert make(tmp_path, "--rank", "320,352", "--layers", "3", "--seed", "6").read_bytes() != first


def test_longer_ranks_keep_their_share(tmp_path: Path) -> None:
    assert observe(make(tmp_path, "--rank", "320,352"), "predictor")["computed"] == pytest.approx(0.1, abs=TOLERANCE)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--active", "0"],
        ["--active", "1.5"],
        ["--rank", "64"],
        ["--n-head", "3"],
        ["--type", "q6_k"],
        ["--layers", "0"],
    ],
)
def test_refusals_are_one_line(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(tmp_path / "no.gguf"), "--n-vocab", "300", *SMALL, *arguments]
    assert tool("make_synthetic_model").main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["relullama-7b", "relullama-13b", "relullama-70b", "bamboo-7b", "falcon-40b"])
def test_shapes_suit_every_type(name: str) -> None:
    shape = tool("synthetic_shapes").SHAPES[name]
    for weight_type in tool("synthetic_blocks").WEIGHT_TYPES:
        channels = tool("synthetic_firing").Channels.fitting(shape.n_embd, shape.rank, weight_type)
        assert channels.n_constant + channels.n_feature + channels.n_rest == shape.n_embd
        assert channels.n_feature >= 256


def test_encoded_blocks_decode_to_what_they_say() -> None:
    blocks = tool("synthetic_blocks")
    rng = np.random.default_rng(1)
    values = rng.standard_normal((3, 512)).astype(np.float32)
    # One scale a block: steps of the largest value over 7 (15 for unsigned nibbles), 15, 31, 127.
    error = {"Q4_0": 0.01, "Q4_1": 0.01, "Q4_K": 0.02, "Q5_0": 3e-3, "Q5_1": 3e-3, "Q5_K": 4e-3, "Q6_K": 1e-3}
    for weight_type in blocks.WEIGHT_TYPES:
        decoded = dequantize(blocks.encode(values, weight_type).reshape(-1), weight_type, 3, 512)
        assert np.mean((decoded - values) ** 2) / np.mean(values**2) < error.get(weight_type.name, 1e-4)
        constants = np.array([-1.5, 0.0, 0.37], np.float32)
        n = blocks.group_size(weight_type)
        assert n % BLOCK_LAYOUTS[weight_type].n_weights == 0
        decoded = dequantize(blocks.constant_groups(constants, weight_type).reshape(-1), weight_type, 3, n)
        # A float16 scale carries 11 bits; bfloat16 weights 8.
        limit = 2**-8 if weight_type is GGMLType.BF16 else 2**-10
        assert np.abs(decoded - constants[:, None]).max() <= limit * 1.5


def test_rows_do_not_depend_on_where_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(tmp_path).read_bytes()
    monkeypatch.setattr(tool("make_synthetic_model"), "CHUNK_BYTES", 10_000)
    assert make(tmp_path).read_bytes() == whole


def test_last_line_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["files"] == {str(path): path.stat().st_size}
    assert (result["type"], result["head_type"], result["active"]) == ("Q4_0", "Q6_K", 0.1)
