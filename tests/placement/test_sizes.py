"""Device bytes of whole models, held against the tensors of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_models import write_opt

from powerinfer_py.config import CacheType, ModelConfig, Sparsity
from powerinfer_py.errors import ModelError
from powerinfer_py.gguf import GGUFFile, open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.device_bytes import aligned, matrix_bytes
from powerinfer_py.placement.sizes import (
    HEAD_TOKENS,
    ModelSizes,
    band_bytes,
    model_sizes,
    most_parts,
    staging_bytes,
    workspace_bytes,
)

MODELS = ["relu-llama.powerinfer.gguf", "bamboo.q4.powerinfer.gguf", "relu-falcon.q4.powerinfer.gguf"]


def sizes_of(file: GGUFFile, sparsity: Sparsity, n_ctx: int = 100, n_slots: int = 3) -> ModelSizes:
    return model_sizes(file, read_config(file), sparsity=sparsity, n_ctx=n_ctx, n_slots=n_slots)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_but_the_embedding_is_counted_once(fixtures: Path, name: str) -> None:
    with open_gguf(fixtures / name) as file:
        sizes = sizes_of(file, Sparsity.PREDICTOR)
        expected = 0
        for tensor, info in file.tensors.items():
            if tensor == "token_embd.weight":
                continue
            vector = len(info.shape) == 1
            n_bytes = 4 * info.n_weights if vector else matrix_bytes(info.ggml_type, info.shape[0], info.shape[1])
            expected += aligned(n_bytes)
    n_ff = sizes.config.n_ff
    weights = sum(layer.dense_bytes + layer.predictor_bytes + layer.hot_bytes(n_ff) for layer in sizes.layers)
    assert weights + sizes.head_bytes == expected


def test_types_without_kernels_count_as_f16(fixtures: Path) -> None:
    with open_gguf(fixtures / "llama_cpp" / "llama-q5_0.gguf") as file:
        layer = sizes_of(file, Sparsity.EXACT).layers[0]
        n_embd = read_config(file).n_embd
        assert file.tensors["blk.0.ffn_up.weight"].ggml_type.name == "Q5_0"
    assert layer.neuron_row_bytes == (2 * n_embd,) * 3


@pytest.mark.parametrize("sparsity", [Sparsity.EXACT, Sparsity.DENSE])
def test_predictors_count_only_where_they_run(fixtures: Path, sparsity: Sparsity) -> None:
    with open_gguf(fixtures / "bamboo.powerinfer.gguf") as file:
        assert all(layer.predictor_bytes > 0 for layer in sizes_of(file, Sparsity.PREDICTOR).layers)
        sizes = sizes_of(file, sparsity)
    assert all(layer.predictor_bytes == 0 for layer in sizes.layers)
    assert sizes.predictor_rank == 0


def test_biases_are_float32_and_those_of_neurons_go_with_them(tmp_path: Path) -> None:
    with open_gguf(write_opt(tmp_path / "opt.gguf")) as file:
        layer = sizes_of(file, Sparsity.EXACT).layers[0]
        n_embd, up = 64, file.tensors["blk.0.ffn_up.weight"]
    row = matrix_bytes(up.ggml_type, 1, n_embd)
    assert layer.neuron_row_bytes == (row, row, 4)
    assert layer.gate_bytes == row
    assert layer.hot_bytes(3) == 2 * aligned(3 * row) + 256


# K-quants become F16 on the device, and are cut where the file's blocks end.
@pytest.mark.parametrize(
    ("name", "bytes_a_weight", "multiple"),
    [("llama-f16", 2, 1), ("llama-q8_0", 34 / 32, 32), ("llama-q4_0", 18 / 32, 32), ("llama-q6_k", 2, 256)],
)
def test_a_down_projection_by_columns_is_cut_between_blocks(
    fixtures: Path, name: str, bytes_a_weight: float, multiple: int
) -> None:
    with open_gguf(fixtures / "llama_cpp" / f"{name}.gguf") as file:
        sizes = sizes_of(file, Sparsity.DENSE)
    layer = sizes.layers[0]
    assert layer.neuron_multiple == multiple
    assert layer.neuron_row_bytes[2] == bytes_a_weight * sizes.config.n_embd


def test_a_down_projection_is_turned_for_sparse_modes(fixtures: Path) -> None:
    with open_gguf(fixtures / "llama_cpp" / "llama-q8_0.gguf") as file:
        layer = sizes_of(file, Sparsity.EXACT).layers[0]
        n_embd = read_config(file).n_embd
    assert layer.neuron_multiple == 1
    assert layer.neuron_row_bytes[2] == 2 * n_embd


def test_a_tied_head_is_the_embedding(fixtures: Path) -> None:
    with open_gguf(fixtures / "llama_cpp" / "llama-tied.gguf") as file:
        sizes = sizes_of(file, Sparsity.DENSE)
        embedding = file.tensors["token_embd.weight"]
    assert sizes.head_bytes == aligned(matrix_bytes(embedding.ggml_type, *embedding.shape)) + aligned(
        4 * sizes.config.n_embd
    )


def test_kv_bytes_follow_type_context_and_slots(fixtures: Path) -> None:
    with open_gguf(fixtures / "relu-llama.powerinfer.gguf") as file:
        config = read_config(file)
        rows = 3 * 100 * config.n_head_kv
        assert sizes_of(file, Sparsity.EXACT).layers[0].kv_bytes == 2 * aligned(rows * config.head_dim * 2)
        if config.head_dim % 32 == 0:
            sizes = model_sizes(
                file, config, sparsity=Sparsity.EXACT, n_ctx=100, n_slots=3, cache_type_k=CacheType.Q8_0
            )
            keys_bytes = aligned(rows * config.head_dim // 32 * 34)
            assert sizes.layers[0].kv_bytes == keys_bytes + aligned(rows * config.head_dim_v * 2)


def test_workspace_grows_with_tokens_and_holds_logits_of_a_few(fixtures: Path) -> None:
    with open_gguf(fixtures / "relu-llama.powerinfer.gguf") as file:
        sizes = sizes_of(file, Sparsity.PREDICTOR)
    config: ModelConfig = sizes.config
    one, many = (workspace_bytes(sizes, n, head_on_gpu=False) for n in (1, 512))
    per_token = 5 * config.n_embd * 4 + 4 * config.n_ff * 4 + config.n_ff * 5
    assert many > 512 * per_token
    assert one < many
    with_head = workspace_bytes(sizes, 512, head_on_gpu=True)
    assert staging_bytes(sizes, 5) == aligned(5 * config.n_embd * 4) + 2 * band_bytes(sizes)
    assert sizes.layers[0].hot_bytes(config.n_ff // 8) <= band_bytes(sizes) < sizes.layers[0].hot_bytes(config.n_ff)
    logits, halves = HEAD_TOKENS * config.n_vocab * 4, 2 * HEAD_TOKENS * config.n_embd * 2
    partial = most_parts(HEAD_TOKENS, config.n_vocab) * HEAD_TOKENS * config.n_vocab * 4
    assert with_head - many == aligned(logits) + halves + aligned(HEAD_TOKENS * 4) + aligned(partial)


def test_workspace_never_shrinks_as_tokens_grow(fixtures: Path) -> None:
    """A chunk of few tokens takes other kernels; what they keep must fit where a longer chunk was planned."""
    with open_gguf(fixtures / "relu-llama.powerinfer.gguf") as file:
        sizes = sizes_of(file, Sparsity.PREDICTOR, n_ctx=4096)
    needed = [workspace_bytes(sizes, n, head_on_gpu=False) for n in [*range(1, 40), *range(40, 20000, 499)]]
    assert needed == sorted(needed)
    # Sixteen tokens keep parts of every head for each 128 positions; that alone is this much.
    assert needed[16] >= 16 * sizes.config.n_head * 32 * (sizes.config.head_dim_v + 2) * 4


def test_missing_neurons_are_named(fixtures: Path) -> None:
    with open_gguf(fixtures / "bamboo.powerinfer.gguf") as file:
        config = read_config(file)
        file.tensors = {name: info for name, info in file.tensors.items() if "1.ffn_down_t" not in name}
        with pytest.raises(ModelError, match=r"blk\.1\.ffn_down_t\.weight is missing"):
            model_sizes(file, config, sparsity=Sparsity.EXACT, n_ctx=8)
