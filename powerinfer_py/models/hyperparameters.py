"""Hyperparameters and activation of a model, read from the metadata of its file and checked against each other.

Tensor shapes are checked where the tensors are found (`weights.py`). Everything here comes from a stranger: each value
has a range, and a contradiction is refused by naming the keys.
"""

from __future__ import annotations

import math

from powerinfer_py import env
from powerinfer_py.config import Activation, ModelConfig, RopeConfig, RopeScaling, RuntimeOptions
from powerinfer_py.errors import ModelError, UnsupportedError, printable
from powerinfer_py.gguf import GGUFFile
from powerinfer_py.models.architecture import Architecture, NormKind
from powerinfer_py.models.registry import architecture_named

# Far above any model that exists; a file beyond them is wrong, and sizes computed from it would overflow.
_MAX_LAYERS = 1 << 12
_MAX_WIDTH = 1 << 20
_MAX_CONTEXT = 1 << 27


def read_config(file: GGUFFile, options: RuntimeOptions | None = None) -> ModelConfig:
    """Hyperparameters of the model in `file`; `options` may override activation and sparse threshold.

    Raises ModelError for values that are missing, out of range or contradictory, UnsupportedError for an architecture
    or activation that is not computed here, FileFormatError for a value of the wrong type.
    """
    options = options or RuntimeOptions()
    architecture = architecture_named(file.require_str("general.architecture"))
    reader = _KeyReader(file, architecture.name)
    n_embd = reader.count("embedding_length", _MAX_WIDTH)
    n_head = reader.count("attention.head_count", _MAX_WIDTH)
    n_head_kv = reader.count("attention.head_count_kv", _MAX_WIDTH, default=n_head)
    if n_head % n_head_kv:
        raise ModelError(f"{n_head} attention heads cannot share {n_head_kv} key heads evenly")
    head_dim, head_dim_v = _head_dims(reader, n_embd, n_head)
    activation, threshold = _activation(file, architecture, options)
    return ModelConfig(
        architecture=architecture.name,
        name=file.get_str("general.name", ""),
        n_vocab=_n_vocab(file),
        n_ctx_train=reader.count("context_length", _MAX_CONTEXT),
        n_embd=n_embd,
        n_layer=reader.count("block_count", _MAX_LAYERS),
        n_ff=reader.count("feed_forward_length", _MAX_WIDTH),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        norm_eps=_norm_eps(reader, architecture),
        activation=activation,
        fatrelu_threshold=threshold,
        sparse_threshold=_sparse_threshold(file, options),
        rope=_rope(reader, head_dim) if architecture.uses_rope else None,
        has_predictors="blk.0.fc1.weight" in file.tensors,
        is_powerinfer=file.is_powerinfer,
    )


class _KeyReader:
    """Keys below `{architecture}.`, with ranges."""

    def __init__(self, file: GGUFFile, prefix: str) -> None:
        self.file = file
        self.prefix = prefix

    def has(self, name: str) -> bool:
        return f"{self.prefix}.{name}" in self.file.metadata

    def count(self, name: str, maximum: int, default: int | None = None) -> int:
        """A positive integer up to `maximum`."""
        key = f"{self.prefix}.{name}"
        entry = self.file.entries.get(key)
        if entry is not None and entry.element_type is not None:
            raise UnsupportedError(f"{key} differs from layer to layer, which this version does not run")
        value = self.file.require_int(key) if default is None else self.file.get_int(key, default)
        if not 1 <= value <= maximum:
            raise ModelError(f"{key} is {value}, expected 1 to {maximum}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = 0.0, high: float = 1e12) -> float:
        """A finite float above `low` and up to `high`."""
        key = f"{self.prefix}.{name}"
        value = self.file.require_float(key) if default is None else self.file.get_float(key, default)
        if not (math.isfinite(value) and low < value <= high):
            raise ModelError(f"{key} is {value}, expected a finite number above {low:g}")
        return value


def _n_vocab(file: GGUFFile) -> int:
    info = file.tensors.get("token_embd.weight")
    if info is None:
        raise ModelError("tensor token_embd.weight is missing")
    if len(info.shape) != 2 or info.shape[0] < 1:
        raise ModelError(f"token_embd.weight has shape {tuple(info.shape)}, expected (n_vocab, n_embd)")
    n_tokens = len(file.get_strings("tokenizer.ggml.tokens", []))
    if n_tokens > info.shape[0]:
        raise ModelError(f"the vocabulary has {n_tokens} tokens, token_embd.weight only {info.shape[0]} rows")
    return info.shape[0]


def _head_dims(reader: _KeyReader, n_embd: int, n_head: int) -> tuple[int, int]:
    both_given = reader.has("attention.key_length") and reader.has("attention.value_length")
    if n_embd % n_head and not both_given:
        raise ModelError(f"embedding length {n_embd} is no multiple of {n_head} heads, and no key length is given")
    head_dim = reader.count("attention.key_length", _MAX_WIDTH, default=max(1, n_embd // n_head))
    return head_dim, reader.count("attention.value_length", _MAX_WIDTH, default=max(1, n_embd // n_head))


def _norm_eps(reader: _KeyReader, architecture: Architecture) -> float:
    if architecture.norm is NormKind.RMS:
        return reader.number("attention.layer_norm_rms_epsilon")
    return reader.number("attention.layer_norm_epsilon")


def _rope(reader: _KeyReader, head_dim: int) -> RopeConfig:
    n_rot = reader.count("rope.dimension_count", _MAX_WIDTH, default=head_dim)
    if n_rot % 2 or n_rot > head_dim:
        raise ModelError(f"{reader.prefix}.rope.dimension_count is {n_rot}, expected an even number up to {head_dim}")
    base = reader.number("rope.freq_base", 10000.0, low=1.0)
    # As llama.cpp reads them: a factor without a type is linear, and attn_factor holds for every type.
    kind = reader.file.get_str(f"{reader.prefix}.rope.scaling.type", RopeScaling.LINEAR)
    if kind not in list(RopeScaling):
        raise UnsupportedError(f"unknown RoPE scaling '{printable(kind)}' (supported: {', '.join(RopeScaling)})")
    trained = reader.count("context_length", _MAX_CONTEXT)
    return RopeConfig(
        n_rot,
        base,
        RopeScaling(kind),
        _rope_factor(reader),
        original_context=reader.count("rope.scaling.original_context_length", _MAX_CONTEXT, default=trained),
        attn_factor=reader.number("rope.scaling.attn_factor", 1.0),
    )


def _rope_factor(reader: _KeyReader) -> float:
    """Stretch of the context; 0 and absent mean none. `rope.scale_linear` is what older converters wrote."""
    name = "rope.scaling.factor" if reader.has("rope.scaling.factor") else "rope.scale_linear"
    value = reader.file.get_float(f"{reader.prefix}.{name}", 1.0)
    return 1.0 if value == 0.0 else reader.number(name, 1.0)


def _activation(file: GGUFFile, architecture: Architecture, options: RuntimeOptions) -> tuple[Activation, float]:
    """The activation and, for FATReLU, its threshold."""
    named = file.get_str("powerinfer.activation")
    implied = architecture.powerinfer_activation if file.is_powerinfer else architecture.dense_activation
    name = options.activation or (implied if named is None else named)
    try:
        activation = Activation(name)
    except ValueError:
        known = ", ".join(Activation)
        raise UnsupportedError(
            f"activation '{printable(name)}' of this {architecture.name} model is unknown here (supported: {known})"
        ) from None
    needs_gate = activation in (Activation.SILU, Activation.DRELU)
    if needs_gate and not architecture.gated:
        raise UnsupportedError(f"activation '{activation}' needs a gate, and {architecture.name} models have none")
    if activation is not Activation.FATRELU:
        return activation, 0.0
    threshold = file.get_float("powerinfer.fatrelu_threshold")
    if threshold is None or not (math.isfinite(threshold) and threshold >= 0):
        raise ModelError(f"FATReLU needs powerinfer.fatrelu_threshold, a finite number >= 0; found {threshold}")
    return activation, threshold


def _sparse_threshold(file: GGUFFile, options: RuntimeOptions) -> float:
    if options.sparse_threshold is not None:
        return options.sparse_threshold
    override = env.sparse_threshold_override()
    if override is not None:
        return override
    value = file.get_float("powerinfer.sparse_threshold", 0.0)
    if not math.isfinite(value):
        raise ModelError(f"powerinfer.sparse_threshold is {value}, expected a finite number")
    return value
