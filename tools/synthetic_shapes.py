"""Shapes of published models, and the metadata that a made-up model of such a shape needs.

Dimensions only: they are facts of the models' published configurations. No weights, no tokenizer of theirs. The
vocabulary is made of letters, small enough to state here and accepted wherever SentencePiece vocabularies are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from string import ascii_lowercase

from powerinfer_py.gguf import GGMLType, GGUFWriter, ValueType

# unknown, begin, end, then the 256 bytes; ordinary tokens follow.
N_SPECIAL = 3
FIRST_ORDINARY = N_SPECIAL + 256
GATED = ("llama", "bamboo")
LAYER_NORM = ("falcon", "opt")


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model. rank: of the predictors. active: share of neurons that fire, by default."""

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx: int = 4096
    rank: int = 1024
    active: float = 0.10
    rope_base: float = 10000.0

    @property
    def is_gated(self) -> bool:
        """Whether the FFN has a gate."""
        return self.architecture in GATED

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.n_embd // self.n_head

    @property
    def activated(self) -> str:
        """The FFN matrix that decides which neurons fire."""
        return "ffn_gate" if self.is_gated else "ffn_up"


SHAPES = {
    "relullama-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000),
    "relullama-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000),
    "relullama-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000),
    "prosparse-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, active=0.11),
    "prosparse-13b": Shape("llama", 40, 5120, 13824, 40, 40, 32000, active=0.12),
    "bamboo-7b": Shape("bamboo", 32, 4096, 14336, 32, 8, 32000),
    "falcon-40b": Shape("falcon", 60, 8192, 32768, 128, 8, 65024, n_ctx=2048, active=0.05),
    "opt-6.7b": Shape("opt", 32, 4096, 16384, 32, 32, 50272, n_ctx=2048, active=0.05),
    "opt-30b": Shape("opt", 48, 7168, 28672, 56, 56, 50272, n_ctx=2048, active=0.05),
    "opt-66b": Shape("opt", 64, 9216, 36864, 72, 72, 50272, n_ctx=2048, active=0.05),
}


def attention_shapes(shape: Shape) -> dict[str, tuple[int, int]]:
    """The projections of a layer's attention that read the residual stream."""
    kv = shape.n_head_kv * shape.head_dim
    if shape.architecture == "falcon":
        return {"attn_qkv": (shape.n_embd + 2 * kv, shape.n_embd)}
    return {"attn_q": (shape.n_embd, shape.n_embd), "attn_k": (kv, shape.n_embd), "attn_v": (kv, shape.n_embd)}


def norm_names(shape: Shape) -> list[str]:
    """Norms of a layer. Falcon's two feed FFN and attention, both from the layer's input."""
    return ["attn_norm", "attn_norm_2" if shape.architecture == "falcon" else "ffn_norm"]


def bias_shapes(shape: Shape, down: str) -> dict[str, int]:
    """Biases of a layer besides those of norms; all are zero in made-up models, but they are read."""
    if shape.architecture != "opt":
        return {}
    attention = {name: rows for name, (rows, _) in attention_shapes(shape).items()}
    return {**attention, "attn_output": shape.n_embd, "ffn_up": shape.n_ff, down: shape.n_embd}


_FILE_TYPES = {
    GGMLType.F32: 0,
    GGMLType.F16: 1,
    GGMLType.Q4_0: 2,
    GGMLType.Q4_1: 3,
    GGMLType.Q8_0: 7,
    GGMLType.Q5_0: 8,
    GGMLType.Q5_1: 9,
    GGMLType.Q4_K: 15,
    GGMLType.Q5_K: 17,
    GGMLType.Q6_K: 18,
    GGMLType.BF16: 32,
}


def write_metadata(writer: GGUFWriter, shape: Shape, ggml_type: GGMLType, name: str, activation: str | None) -> None:
    """Everything but the tensors. activation: written where the architecture alone would mean another."""
    arch = shape.architecture
    writer.add("general.architecture", arch, ValueType.STRING)
    writer.add("general.name", name, ValueType.STRING)
    writer.add("general.file_type", _FILE_TYPES[ggml_type], ValueType.UINT32)
    writer.add("general.quantization_version", 2, ValueType.UINT32)
    counts = {
        "context_length": shape.n_ctx,
        "embedding_length": shape.n_embd,
        "block_count": shape.n_layer,
        "feed_forward_length": shape.n_ff,
        "attention.head_count": shape.n_head,
        "attention.head_count_kv": shape.n_head_kv,
    }
    if arch != "opt":
        counts["rope.dimension_count"] = shape.head_dim
        writer.add(f"{arch}.rope.freq_base", shape.rope_base, ValueType.FLOAT32)
    for key, value in counts.items():
        writer.add(f"{arch}.{key}", value, ValueType.UINT32)
    epsilon = "layer_norm_epsilon" if arch in LAYER_NORM else "layer_norm_rms_epsilon"
    writer.add(f"{arch}.attention.{epsilon}", 1e-5, ValueType.FLOAT32)
    if arch == "falcon":
        writer.add("falcon.tensor_data_layout", "jploski", ValueType.STRING)
    if writer.magic == "PWRI":
        writer.add("powerinfer.sparse_threshold", 0.0, ValueType.FLOAT32)
    elif activation is not None:
        writer.add("powerinfer.activation", activation, ValueType.STRING)
    _write_vocabulary(writer, shape.n_vocab)


def _write_vocabulary(writer: GGUFWriter, n_vocab: int) -> None:
    """Ordinary tokens are words of 2 letters, then 3, then 4: each is reached by adding a letter to a shorter one."""
    n_words = n_vocab - FIRST_ORDINARY
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *islice(_words(), n_words)]
    scores = [0.0] * FIRST_ORDINARY + [-float(i) for i in range(n_words)]
    types = [2, 3, 3] + [6] * 256 + [1] * n_words
    writer.add("tokenizer.ggml.model", "llama", ValueType.STRING)
    writer.add("tokenizer.ggml.tokens", tokens, ValueType.ARRAY, ValueType.STRING)
    writer.add("tokenizer.ggml.scores", scores, ValueType.ARRAY, ValueType.FLOAT32)
    writer.add("tokenizer.ggml.token_type", types, ValueType.ARRAY, ValueType.INT32)
    writer.add("tokenizer.ggml.bos_token_id", 1, ValueType.UINT32)
    writer.add("tokenizer.ggml.eos_token_id", 2, ValueType.UINT32)


def _words() -> Iterator[str]:
    for length in (2, 3, 4):
        yield from map("".join, product(ascii_lowercase, repeat=length))
