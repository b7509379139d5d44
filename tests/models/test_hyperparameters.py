"""What a file may say about its model, and what is refused by naming it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_logits import FIXTURES
from helpers_models import edited_copy

from powerinfer_py import LLM
from powerinfer_py.config import Activation, RopeScaling, RuntimeOptions
from powerinfer_py.errors import ModelError, PowerInferError, UnsupportedError
from powerinfer_py.gguf import ValueType, open_gguf
from powerinfer_py.models.hyperparameters import read_config

SOURCE = FIXTURES / "bamboo.q4.powerinfer.gguf"
LLAMA = FIXTURES / "relu-llama.q4.powerinfer.gguf"
U32, F32, TEXT = ValueType.UINT32, ValueType.FLOAT32, ValueType.STRING


def config_with(tmp_path: Path, source: Path = SOURCE, **values: tuple[object, ValueType]):
    named = {key.replace("__", "."): value for key, value in values.items()}
    with open_gguf(edited_copy(source, tmp_path / "edited.gguf", values=named)) as file:
        return read_config(file)


def test_fixture_values() -> None:
    with open_gguf(LLAMA) as file:
        config = read_config(file)
    assert (config.n_layer, config.n_embd, config.n_ff, config.n_head, config.n_head_kv) == (12, 64, 1024, 4, 2)
    assert (config.head_dim, config.n_vocab, config.n_ctx_train) == (16, 512, 256)
    assert config.activation is Activation.RELU
    assert config.sparse_threshold == pytest.approx(0.1)
    assert config.has_predictors
    assert config.is_powerinfer


@pytest.mark.parametrize(("name", "activation"), [("relu-llama", "relu"), ("bamboo", "drelu"), ("relu-falcon", "relu")])
def test_activation_follows_the_architecture(name: str, activation: str) -> None:
    with open_gguf(FIXTURES / f"{name}.powerinfer.gguf") as file:
        assert read_config(file).activation == activation


def test_activation_key_and_option(tmp_path: Path) -> None:
    config = config_with(tmp_path, powerinfer__activation=("relu", TEXT))
    assert config.activation is Activation.RELU
    with open_gguf(SOURCE) as file:
        assert read_config(file, RuntimeOptions(activation=Activation.SILU)).activation is Activation.SILU


def test_fatrelu_has_a_threshold(tmp_path: Path) -> None:
    fatrelu = {"powerinfer__activation": ("fatrelu", TEXT)}
    config = config_with(tmp_path, **fatrelu, powerinfer__fatrelu_threshold=(0.01, F32))
    assert (config.activation, config.fatrelu_threshold) == (Activation.FATRELU, pytest.approx(0.01))
    for wrong in (None, float("nan"), -1.0):
        values = fatrelu if wrong is None else fatrelu | {"powerinfer__fatrelu_threshold": (wrong, F32)}
        with pytest.raises(ModelError, match="fatrelu_threshold"):
            config_with(tmp_path, **values)


def test_threshold_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option overrides the variable, the variable overrides the file, and absent means 0."""
    assert config_with(tmp_path).sparse_threshold == 0.0
    monkeypatch.setenv("LLAMA_SPARSE_PRED_THRESHOLD", "0.7")
    with open_gguf(LLAMA) as file:
        assert read_config(file).sparse_threshold == 0.7
        assert read_config(file, RuntimeOptions(sparse_threshold=-1.0)).sparse_threshold == -1.0
    monkeypatch.setenv("LLAMA_SPARSE_PRED_THRESHOLD", "high")
    with open_gguf(LLAMA) as file, pytest.raises(PowerInferError, match="finite number"):
        read_config(file)


def test_rope_scaling(tmp_path: Path) -> None:
    linear = config_with(
        tmp_path, bamboo__rope__scaling__type=("linear", TEXT), bamboo__rope__scaling__factor=(4.0, F32)
    )
    assert linear.rope is not None
    assert (linear.rope.scaling, linear.rope.factor) == (RopeScaling.LINEAR, 4.0)
    old = config_with(tmp_path, bamboo__rope__scale_linear=(2.0, F32))
    assert old.rope is not None
    assert (old.rope.scaling, old.rope.factor) == (RopeScaling.LINEAR, 2.0)
    with pytest.raises(UnsupportedError, match="longrope"):
        config_with(tmp_path, bamboo__rope__scaling__type=("longrope", TEXT))


@pytest.mark.parametrize(
    ("key", "value", "value_type"),
    [
        ("general.architecture", "gpt-j", TEXT),
        ("bamboo.block_count", 0, U32),
        ("bamboo.block_count", 3, U32),
        ("bamboo.block_count", 2**32 - 1, U32),
        ("bamboo.attention.head_count", 0, U32),
        ("bamboo.attention.head_count", 3, U32),
        ("bamboo.attention.head_count_kv", 0, U32),
        ("bamboo.attention.head_count_kv", 2**31, U32),
        ("bamboo.embedding_length", 63, U32),
        ("bamboo.embedding_length", 2**31, U32),
        ("bamboo.feed_forward_length", 512, U32),
        ("bamboo.context_length", 0, U32),
        ("bamboo.rope.dimension_count", 31, U32),
        ("bamboo.rope.dimension_count", 64, U32),
        ("bamboo.rope.freq_base", float("nan"), F32),
        ("bamboo.rope.freq_base", 0.0, F32),
        ("bamboo.attention.layer_norm_rms_epsilon", float("inf"), F32),
        ("bamboo.attention.layer_norm_rms_epsilon", -1.0, F32),
        ("bamboo.attention.layer_norm_rms_epsilon", 1, U32),
        ("powerinfer.sparse_threshold", float("nan"), F32),
        ("powerinfer.activation", "gelu", TEXT),
        ("bamboo.attention.key_length", 16, U32),
    ],
)
def test_refused(key: str, value: object, value_type: ValueType, tmp_path: Path) -> None:
    path = edited_copy(SOURCE, tmp_path / "edited.gguf", values={key: (value, value_type)})
    with pytest.raises(PowerInferError) as caught:
        LLM(path, threads=1)
    assert "\n" not in str(caught.value)


def test_missing_and_surplus_tensors(tmp_path: Path) -> None:
    path = edited_copy(SOURCE, tmp_path / "a.gguf", drop=lambda name: name == "blk.1.ffn_up.weight")
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight is missing"):
        LLM(path, threads=1)
    path = edited_copy(SOURCE, tmp_path / "b.gguf", drop=lambda name: name == "blk.1.fc2.weight")
    with pytest.raises(ModelError, match=r"blk\.1\.fc2\.weight is missing"):
        LLM(path, threads=1)
    path = edited_copy(SOURCE, tmp_path / "c.gguf", drop=lambda name: name == "token_embd.weight")
    with pytest.raises(ModelError, match="token_embd"):
        LLM(path, threads=1)
    layers = {"bamboo.block_count": (1, U32)}
    with pytest.raises(UnsupportedError, match=r"blk\.1\."):
        LLM(edited_copy(SOURCE, tmp_path / "d.gguf", values=layers), threads=1)


def test_nan_in_a_norm_reaches_no_sampler(tmp_path: Path) -> None:
    def edit(name: str, data: np.ndarray) -> np.ndarray:
        return np.full_like(data, 0xFF) if name == "output_norm.weight" else data

    path = edited_copy(SOURCE, tmp_path / "nan.gguf", edit)
    with LLM(path, threads=1) as llm, pytest.raises(PowerInferError, match="NaN"):
        llm.generate("Hello")
