"""Makes small GGUF files with random weights, one for each thing an engine must get right.

An instrument for people with a checkout, not a test: its files lie in `tests/fixtures/llama_cpp`, where
`record_llama_cpp.py` adds what llama.cpp computes on them. Nothing of powerinfer_py is imported, so that the files owe
nothing to the code that is tested against them. Every byte follows from the seeds below.

    python tools/make_random_models.py tests/fixtures/llama_cpp
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

Array = npt.NDArray[Any]
KeyValue = str | int | float

# Beyond a magnitude of 10, ggml's GELU passes a pre-activation unchanged or cuts it to 0, as ReLU does; beyond 17,
# float32 SiLU does too. Models with a `saturated` FFN stay out there, so that they mean the same under all three.
SATURATED_CHANNEL = 6.0
SATURATED_WEIGHT = 24.0


@dataclass(frozen=True)
class Case:
    """One model file. `keys` are metadata below the architecture's prefix; `biases` names matrices that get one."""

    name: str
    arch: str = "llama"
    seed: int = 0
    n_embd: int = 32
    n_ff: int = 32
    n_layer: int = 2
    n_head: int = 2
    n_head_kv: int = 1
    head_dim: int = 16
    n_vocab: int = 64
    weight_type: str = "F32"
    tied: bool = False
    two_norms: bool = False
    saturated: bool = False
    n_shards: int = 1
    activation: str = ""
    biases: tuple[str, ...] = ()
    rope_factors: tuple[float, ...] = ()
    keys: Mapping[str, KeyValue] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """File names, the first shard first."""
        if self.n_shards == 1:
            return [f"{self.name}.gguf"]
        return [f"{self.name}-{i + 1:05d}-of-{self.n_shards:05d}.gguf" for i in range(self.n_shards)]


YARN: dict[str, KeyValue] = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
SMALL_ROPE: dict[str, Any] = {"n_layer": 1, "n_ff": 16, "head_dim": 32, "tied": True}
K_QUANT: dict[str, Any] = {"n_embd": 256, "n_layer": 1, "head_dim": 32, "tied": True}
BLOCK_QUANT: dict[str, Any] = {"n_embd": 64, "n_ff": 128, "n_layer": 1, "head_dim": 32}
QKV = ("attn_q", "attn_k", "attn_v")

CASES = (
    Case("llama", seed=1, n_head_kv=2),
    Case("llama-gqa", seed=2, n_head=4, head_dim=8, n_head_kv=2),
    Case("llama-tied", seed=3, tied=True),
    Case("llama-bias", seed=4, biases=(*QKV, "attn_output")),
    Case("llama-ffn-bias", seed=5, n_layer=1, biases=("ffn_gate", "ffn_up", "ffn_down")),
    Case("llama-head-dim", seed=6, head_dim=24, keys={"attention.key_length": 24, "attention.value_length": 24}),
    Case("llama-relu", seed=7, saturated=True, activation="relu"),
    Case("llama-split", seed=8, n_shards=2),
    Case("llama-linear", seed=10, keys={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, **SMALL_ROPE),
    Case("llama-linear-legacy", seed=11, keys={"rope.scale_linear": 4.0}, **SMALL_ROPE),
    Case(
        "llama-linear-implied",
        seed=18,
        keys={"rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 1.25},
        **SMALL_ROPE,
    ),
    Case("llama-scaling-none", seed=12, keys={"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, **SMALL_ROPE),
    Case("llama-yarn", seed=13, keys={**YARN, "rope.scaling.original_context_length": 1024}, **SMALL_ROPE),
    Case("llama-yarn-short", seed=14, keys={**YARN, "rope.scaling.original_context_length": 16}, **SMALL_ROPE),
    Case("llama-yarn-train-context", seed=15, keys=YARN, **SMALL_ROPE),
    Case(
        "llama-yarn-factors",
        seed=16,
        keys={
            **YARN,
            "rope.scaling.original_context_length": 256,
            "rope.scaling.attn_factor": 1.25,
            "rope.scaling.yarn_beta_fast": 8.0,
            "rope.scaling.yarn_beta_slow": 2.0,
        },
        **SMALL_ROPE,
    ),
    Case("llama-rope-freqs", seed=17, rope_factors=(1.0,) * 4 + (1.5, 3.0, 5.0, 7.0) + (8.0,) * 8, **SMALL_ROPE),
    Case("arcee", arch="arcee", seed=20),
    Case("arcee-f16", arch="arcee", seed=21, weight_type="F16"),
    Case("arcee-tied", arch="arcee", seed=22, tied=True, n_head_kv=2),
    Case("falcon-mqa", arch="falcon", seed=30, saturated=True, activation="relu", n_head=4, head_dim=8),
    Case("falcon-gqa", arch="falcon", seed=31, saturated=True, activation="relu", n_head=4, head_dim=8, n_head_kv=2),
    Case(
        "falcon-two-norms",
        arch="falcon",
        seed=32,
        saturated=True,
        activation="relu",
        n_head=4,
        head_dim=8,
        n_head_kv=2,
        two_norms=True,
        tied=True,
    ),
    *(
        Case(f"llama-{t.lower()}", seed=40 + i, weight_type=t, **BLOCK_QUANT)
        for i, t in enumerate(("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
    ),
    *(
        Case(f"llama-{t.lower()}", seed=50 + i, weight_type=t, n_ff=n_ff, **K_QUANT)
        for i, (t, n_ff) in enumerate((("Q2_K", 64), ("Q3_K", 64), ("Q4_K", 256), ("Q5_K", 64), ("Q6_K", 256)))
    ),
)

# Where d and dmin lie in a block, and the dmin / d that centres the weights: the mean of scale * quant over the mean of
# the minimum's multiplier, random bits making both uniform.
K_BLOCKS: dict[str, tuple[int, int | None, float]] = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}


def shapes(case: Case) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and numpy shapes of the weight matrices, as llama.cpp names them."""
    n_q, n_kv = case.n_head * case.head_dim, case.n_head_kv * case.head_dim
    yield "token_embd", (case.n_vocab, case.n_embd)
    for i in range(case.n_layer):
        block = f"blk.{i}."
        if case.arch == "falcon":
            yield block + "attn_qkv", (n_q + 2 * n_kv, case.n_embd)
        else:
            yield block + "attn_q", (n_q, case.n_embd)
            yield block + "attn_k", (n_kv, case.n_embd)
            yield block + "attn_v", (n_kv, case.n_embd)
        yield block + "attn_output", (case.n_embd, n_q)
        if case.arch == "llama":
            yield block + "ffn_gate", (case.n_ff, case.n_embd)
        yield block + "ffn_up", (case.n_ff, case.n_embd)
        yield block + "ffn_down", (case.n_embd, case.n_ff)
    if not case.tied:
        yield "output", (case.n_vocab, case.n_embd)


def random_matrix(case: Case, rng: np.random.Generator, name: str, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Normal weights that keep the residual stream near 1; larger for queries and keys, so that attention is uneven."""
    kind = name.rsplit(".", 1)[-1]
    gain = {"token_embd": np.sqrt(shape[1]), "attn_q": 1.6, "attn_k": 1.6, "attn_qkv": 1.4}.get(kind, 1.0)
    weights: npt.NDArray[np.float32] = (rng.standard_normal(shape) * gain / np.sqrt(shape[1])).astype(np.float32)
    if case.saturated:
        saturate(kind, "ffn_gate" if case.arch == "llama" else "ffn_up", weights, rng)
    return weights


def saturate(kind: str, activated: str, weights: npt.NDArray[np.float32], rng: np.random.Generator) -> None:
    """Lets channel 0 of the residual stream decide, for each token and neuron, far on which side of 0 it falls.

    The channel is +-SATURATED_CHANNEL by token, nothing is ever added to it, and the rows of `activated`, the matrix
    that feeds the activation, weigh it by +-SATURATED_WEIGHT: whether a neuron fires depends on the token.
    """
    if kind == "token_embd":
        weights[:, 0] = SATURATED_CHANNEL * rng.choice(np.array([-1.0, 1.0], np.float32), len(weights))
    elif kind == activated:
        weights[:, 0] = SATURATED_WEIGHT * rng.choice(np.array([-1.0, 1.0], np.float32), len(weights))
    elif kind in ("attn_output", "ffn_down"):
        weights[0] = 0.0
        if kind == "ffn_down":
            weights *= 1.0 / SATURATED_WEIGHT


def k_quant_rows(weight_type: str, rng: np.random.Generator, shape: tuple[int, int], std: float) -> Array:
    """Rows of K-quant blocks of random bytes, scaled so that the dequantised weights have standard deviation `std`."""
    qtype = GGMLQuantizationType[weight_type]
    n_weights, n_bytes = GGML_QUANT_SIZES[qtype]
    at_d, at_dmin, centre = K_BLOCKS[weight_type]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // n_weights, n_bytes), dtype=np.uint8)
    spread = rng.uniform(0.5, 1.5, len(blocks)).astype(np.float32)

    def with_scale(scale: float) -> Array:
        d = (spread * scale).astype(np.float16)
        blocks[:, at_d : at_d + 2] = d.view(np.uint8).reshape(-1, 2)
        if at_dmin is not None:
            dmin = (d.astype(np.float32) * centre).astype(np.float16)
            blocks[:, at_dmin : at_dmin + 2] = dmin.view(np.uint8).reshape(-1, 2)
        return blocks.reshape(shape[0], -1)

    unit = dequantize(with_scale(2.0**-8), qtype).std() * 2.0**8
    return with_scale(std / unit).copy()


def encode(case: Case, rng: np.random.Generator, name: str, shape: tuple[int, int]) -> tuple[Array, Any]:
    """One matrix in the case's weight type; Q8_0 where a row is no multiple of a K-quant block."""
    weights = random_matrix(case, rng, name, shape)
    if case.weight_type not in K_BLOCKS:
        qtype = GGMLQuantizationType[case.weight_type]
        return quantize(weights, qtype), qtype
    if shape[1] % 256:
        return quantize(weights, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0
    rows = k_quant_rows(case.weight_type, rng, shape, float(weights.std()))
    return rows, GGMLQuantizationType[case.weight_type]


def norm_names(case: Case) -> Iterator[str]:
    """Names of the norms, without `.weight`."""
    for i in range(case.n_layer):
        yield f"blk.{i}.attn_norm"
        if case.two_norms:
            yield f"blk.{i}.attn_norm_2"
        if case.arch != "falcon":
            yield f"blk.{i}.ffn_norm"
    yield "output_norm"


def add_tensors(case: Case, writer: Any) -> None:
    """All tensors, drawn in a fixed order from one generator."""
    rng = np.random.default_rng(case.seed)
    for name, shape in shapes(case):
        data, qtype = encode(case, rng, name, (shape[0], shape[1]))
        writer.add_tensor(f"{name}.weight", data, raw_dtype=qtype)
        if name.rsplit(".", 1)[-1] in case.biases:
            writer.add_tensor(f"{name}.bias", (0.5 * rng.standard_normal(shape[0])).astype(np.float32))
    for name in norm_names(case):
        weight = (1.0 + 0.2 * rng.standard_normal(case.n_embd)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", weight)
        if case.arch == "falcon":
            writer.add_tensor(f"{name}.bias", (0.1 * rng.standard_normal(case.n_embd)).astype(np.float32))
    if case.rope_factors:
        writer.add_tensor("rope_freqs.weight", np.array(case.rope_factors, np.float32))


def metadata(case: Case) -> dict[str, KeyValue]:
    """Hyperparameters below the architecture's prefix; integers are u32 and floats f32 in the file."""
    eps = "attention.layer_norm_epsilon" if case.arch == "falcon" else "attention.layer_norm_rms_epsilon"
    return {
        "context_length": 256,
        "embedding_length": case.n_embd,
        "block_count": case.n_layer,
        "feed_forward_length": case.n_ff,
        "attention.head_count": case.n_head,
        "attention.head_count_kv": case.n_head_kv,
        "rope.dimension_count": case.head_dim,
        "rope.freq_base": 10000.0,
        "vocab_size": case.n_vocab,
        eps: 1e-5,
        **({"attention.key_length": case.head_dim, "attention.value_length": case.head_dim} if narrow(case) else {}),
        **case.keys,
    }


def narrow(case: Case) -> bool:
    """Whether the head size is not embedding length / heads and must be stated."""
    return case.n_head * case.head_dim != case.n_embd


def add_vocabulary(writer: Any, n_vocab: int) -> None:
    """A SentencePiece-type vocabulary as small as llama.cpp accepts: control tokens, a newline byte, plain pieces."""
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581"]
    tokens += [f"{chr(97 + i % 26)}{'x' * (i // 26)}" for i in range(n_vocab - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 4 + [-float(i) for i in range(n_vocab - 4)])
    writer.add_token_types([2, 3, 3, 6] + [1] * (n_vocab - 4))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def write_model(case: Case, folder: Path) -> None:
    """Writes the case's file or shards into `folder`."""
    n_tensors = sum(1 for _ in shapes(case)) + sum(1 for _ in norm_names(case))
    per_shard = 0 if case.n_shards == 1 else -(-n_tensors // case.n_shards)
    writer = GGUFWriter(str(folder / f"{case.name}.gguf"), case.arch, split_max_tensors=per_shard)
    writer.add_name(f"random weights, {case.name}, seed {case.seed}")
    for key, value in metadata(case).items():
        full = f"{case.arch}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        else:
            writer.add_float32(full, value)
    if case.activation:
        writer.add_string("powerinfer.activation", case.activation)
    if case.arch == "falcon":
        writer.add_string("falcon.tensor_data_layout", "jploski")
    add_vocabulary(writer, case.n_vocab)
    add_tensors(case, writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_models(folder: Path) -> None:
    """Writes every case's model, and `manifest.json` that says what each file is."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = {}
    for case in CASES:
        write_model(case, folder)
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in case.files}
        cases[case.name] = {
            "architecture": case.arch,
            "weight_type": case.weight_type,
            "seed": case.seed,
            "files": list(digests),
            "sha256": list(digests.values()),
        }
    (folder / "manifest.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Parses the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files go; those of the same names are replaced")
    make_models(parser.parse_args(argv).folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
