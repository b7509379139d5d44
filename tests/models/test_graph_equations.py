"""The graphs as equations in plain torch, held against what llama.cpp computed on the same files.

This is not a test of powerinfer_py, of which it imports nothing: it shows that the recordings in `fixtures/llama_cpp`
are what they are taken for, and states each convention once in a form that can be read: which dimensions RoPE pairs,
how linear, YaRN and llama3 scaling bend its frequencies, which norm feeds what.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor

RECORDED = Path(__file__).parents[1] / "fixtures" / "llama_cpp"
MANIFEST = json.loads((RECORDED / "manifest.json").read_text())
CASES: dict[str, dict[str, Any]] = MANIFEST["cases"]
TOKENS: list[int] = MANIFEST["tokens"]
LOGITS = np.load(RECORDED / "logits.npz")

# llama.cpp multiplies F32 weights in float32; it rounds activations to float16 for F16 weights, to bfloat16 for BF16,
# to 8 bits for the others. Measured without these roundings: F32 2.1e-13, F16 2.5e-7, BF16 1.1e-5, 8 bits 2.0e-4.
BOUNDS = {"F32": 1e-11, "F16": 1e-6, "BF16": 5e-5}
BOUND_8_BIT = 5e-4
# With them: at most 1e-13, F16 3e-9. One of several thousand roundings falling the other way costs about 2e-7.
BOUND_ROUNDED = 5e-6


@dataclass(frozen=True)
class Model:
    """One model: metadata (without the architecture's prefix), dequantised float32 tensors, and how to compute.

    halves: RoPE pairs dimension i with i + n_rot/2. rounded: activations are rounded as llama.cpp does on x86, by the
    weight's type in `types`; `minima` holds the block minima (rows, blocks) of Q4_1 and Q5_1 weights.
    """

    arch: str
    keys: dict[str, Any]
    tensors: dict[str, Tensor]
    halves: bool
    types: dict[str, str]
    minima: dict[str, Tensor]
    rounded: bool = False

    def key(self, name: str, default: Any = None) -> Any:
        return self.keys.get(name, default)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """`x W^T`, and the bias where the file has one: x (n_tokens, cols) -> (n_tokens, rows)."""
        bias = self.tensors.get(f"{name}.bias")
        weight = self.tensors[f"{name}.weight"]
        y: Tensor = self.rounded_product(f"{name}.weight", x) if self.rounded else x @ weight.T
        return y if bias is None else y + bias

    def rounded_product(self, name: str, x: Tensor) -> Tensor:
        """`x W^T` with x rounded to what llama.cpp multiplies the weight's type by."""
        weight, kind = self.tensors[name], self.types[name]
        if name in self.minima:
            x_blocks, sums = round_8_bit(x)
            steps = weight - self.minima[name].repeat_interleave(32, dim=1)
            return x_blocks @ steps.T + sums.half().float() @ self.minima[name].T
        dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
        if kind in dtypes:
            return x.to(dtypes[kind]).float() @ weight.T
        return (round_k(x) if kind.endswith("_K") else round_8_bit(x)[0]) @ weight.T

    def norm(self, name: str, x: Tensor) -> Tensor:
        """RMSNorm, or LayerNorm with bias in falcon: x (n_tokens, n_embd)."""
        weight = self.tensors[f"{name}.weight"]
        if self.arch == "falcon":
            eps = self.key("attention.layer_norm_epsilon")
            return torch.nn.functional.layer_norm(x, weight.shape, weight, self.tensors[f"{name}.bias"], eps)
        eps = self.key("attention.layer_norm_rms_epsilon")
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def round_8_bit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x in blocks of 32 of 8 bits (Q8_0, Q8_1), and each block's sum: (n_tokens, cols) and (n_tokens, cols / 32).

    The scale is rounded to float16, in the sums it is not.
    """
    blocks = x.view(len(x), -1, 32)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    quants = torch.where(scale > 0, blocks / scale, 0.0).round()
    return (quants * scale.half().float()).flatten(-2), (quants.sum(-1, keepdim=True) * scale).squeeze(-1)


def round_k(x: Tensor) -> Tensor:
    """x in blocks of 256 (Q8_K): the value of largest magnitude becomes -127, the scale stays float32."""
    blocks = x.view(len(x), -1, 256)
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(extreme != 0, -127 / extreme, 0.0)
    quants = (blocks * inverse).round().clamp(max=127)
    return torch.where(extreme != 0, quants / inverse, 0.0).flatten(-2)


def load(name: str) -> Model:
    """Reads the file or shards of a case."""
    keys: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    types: dict[str, str] = {}
    minima: dict[str, Tensor] = {}
    arch: str = CASES[name]["architecture"]
    for file in CASES[name]["files"]:
        reader = GGUFReader(str(RECORDED / file))
        for key, value in reader.fields.items():
            keys.setdefault(key.removeprefix(f"{arch}."), value.contents())
        for tensor in reader.tensors:
            weights = dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
            tensors[tensor.name] = torch.from_numpy(np.array(weights, np.float32))
            types[tensor.name] = tensor.tensor_type.name
            if types[tensor.name] in ("Q4_1", "Q5_1"):
                n_bytes = {"Q4_1": 20, "Q5_1": 24}[types[tensor.name]]
                halves = np.array(tensor.data).reshape(len(weights), -1, n_bytes)[..., 2:4].copy().view(np.float16)
                minima[tensor.name] = torch.from_numpy(halves.astype(np.float32)).squeeze(-1)
    return Model(arch, keys, tensors, arch == "falcon", types, minima)


def yarn_keep(model: Model, n_rot: int) -> Tensor:
    """Share (n_rot / 2) in which YaRN keeps a frequency; the rest is divided by the factor.

    Dimensions that turn more than beta_fast times over the original context keep theirs, those that turn less than
    beta_slow times are interpolated, with a linear ramp over the pair's index between.
    """
    context = model.key("rope.scaling.original_context_length", model.key("context_length"))
    base = model.key("rope.freq_base", 10000.0)

    def pair_that_turns(turns: float) -> float:
        return n_rot * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(base))

    # llama.cpp reads beta_fast and beta_slow from the file for a few architectures only; none of them is tested here.
    low = max(0, math.floor(pair_that_turns(32.0)))
    high = min(n_rot - 1, math.ceil(pair_that_turns(1.0)))
    ramp = (torch.arange(n_rot // 2, dtype=torch.float64) - low) / max(0.001, high - low)
    return 1 - ramp.clamp(0, 1)


def rope_table(model: Model, n_rot: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (n_tokens, n_rot / 2), magnitude scaling included."""
    pairs = torch.arange(n_rot // 2, dtype=torch.float64)
    frequencies = model.key("rope.freq_base", 10000.0) ** (-2 * pairs / n_rot)
    if "rope_freqs.weight" in model.tensors:
        frequencies = frequencies / model.tensors["rope_freqs.weight"].double()
    factor = model.key("rope.scaling.factor", model.key("rope.scale_linear", 1.0)) or 1.0
    scaling = model.key("rope.scaling.type", "linear")
    magnitude = model.key("rope.scaling.attn_factor", 1.0)
    if scaling == "linear":
        frequencies = frequencies / factor
    elif scaling == "yarn":
        keep = yarn_keep(model, n_rot)
        frequencies = frequencies / factor * (1 - keep) + frequencies * keep
        magnitude *= 1 + 0.1 * math.log(factor)
    angles = torch.outer(torch.arange(len(TOKENS), dtype=torch.float64), frequencies)
    return (angles.cos() * magnitude).float(), (angles.sin() * magnitude).float()


def rotate(model: Model, x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE over every dimension of each head: x (n_tokens, n_head, head_dim)."""
    cos, sin = (t[:, None, :] for t in table)
    if model.halves:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def attention(model: Model, block: str, h: Tensor) -> Tensor:
    """Causal attention, query head i with key head i // (n_head / n_head_kv): h (n_tokens, n_embd), a norm's output."""
    n_head, n_head_kv = model.key("attention.head_count"), model.key("attention.head_count_kv")
    head_dim = model.key("attention.key_length", model.key("embedding_length") // n_head)
    if model.arch == "falcon":
        qkv = model.linear(f"{block}.attn_qkv", h)
        q, k, v = torch.tensor_split(qkv, (n_head * head_dim, (n_head + n_head_kv) * head_dim), dim=-1)
    else:
        q, k, v = (model.linear(f"{block}.attn_{part}", h) for part in "qkv")
    table = rope_table(model, head_dim)
    n_tokens = len(h)
    q = rotate(model, q.view(n_tokens, n_head, head_dim), table)
    k = rotate(model, k.view(n_tokens, n_head_kv, head_dim), table).repeat_interleave(n_head // n_head_kv, dim=1)
    v = v.view(n_tokens, n_head_kv, head_dim).repeat_interleave(n_head // n_head_kv, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(head_dim)
    scores = scores.masked_fill(torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1), -math.inf)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
    return model.linear(f"{block}.attn_output", mixed)


def activate(model: Model, x: Tensor) -> Tensor:
    """The architecture's activation function, or ReLU where a saturated model asks for it."""
    if model.key("powerinfer.activation") == "relu":
        # Only out here is ReLU what llama.cpp computes with its GELU or SiLU.
        assert x.abs().min() > 17
        assert 0.1 < (x > 0).float().mean() < 0.9
        return x.relu()
    return torch.nn.functional.silu(x) if model.arch == "llama" else x.relu().square()


def feed_forward(model: Model, block: str, h: Tensor) -> Tensor:
    """`down(act(gate(h)) * up(h))`, or without a gate `down(act(up(h)))`: h (n_tokens, n_embd), a norm's output."""
    up = model.linear(f"{block}.ffn_up", h)
    gated = f"{block}.ffn_gate.weight" in model.tensors
    fired = activate(model, model.linear(f"{block}.ffn_gate", h)) * up if gated else activate(model, up)
    return model.linear(f"{block}.ffn_down", fired)


def forward(model: Model) -> Tensor:
    """Logits of the recorded tokens, (n_tokens, n_vocab)."""
    x = model.tensors["token_embd.weight"][TOKENS]
    for i in range(model.key("block_count")):
        block = f"blk.{i}"
        h = model.norm(f"{block}.attn_norm", x)
        if model.arch == "falcon":
            second = f"{block}.attn_norm_2"
            h_attn = model.norm(second, x) if f"{second}.weight" in model.tensors else h
            x = x + attention(model, block, h_attn) + feed_forward(model, block, h)
        else:
            x = x + attention(model, block, h)
            x = x + feed_forward(model, block, model.norm(f"{block}.ffn_norm", x))
    x = model.norm("output_norm", x)
    head = "output" if "output.weight" in model.tensors else "token_embd"
    return model.linear(head, x)


def nmse(measured: Tensor, expected: np.ndarray[Any, np.dtype[np.float32]]) -> float:
    """Squared error over squared magnitude, in float64."""
    want = torch.from_numpy(expected).double()
    return float((measured.double() - want).square().sum() / want.square().sum())


def without(*words: str) -> Callable[[Model], Model]:
    """The model less the metadata and tensors whose names contain one of the words."""

    def change(model: Model) -> Model:
        def keep(name: str) -> bool:
            return not any(word in name for word in words)

        keys = {k: v for k, v in model.keys.items() if keep(k)}
        return replace(model, keys=keys, tensors={k: v for k, v in model.tensors.items() if keep(k)})

    return change


def with_keys(**changes: Any) -> Callable[[Model], Model]:
    """The model with other RoPE scaling keys."""
    return lambda model: replace(model, keys=model.keys | {f"rope.scaling.{k}": v for k, v in changes.items()})


def other_pairs(model: Model) -> Model:
    """RoPE over adjacent pairs in place of halves, or the reverse."""
    return replace(model, halves=not model.halves)


def inverse_factors(model: Model) -> Model:
    """`rope_freqs.weight` taken as factors that multiply the frequencies."""
    return replace(model, tensors=model.tensors | {"rope_freqs.weight": 1 / model.tensors["rope_freqs.weight"]})


def swapped_norms(model: Model) -> Model:
    """`attn_norm` feeds attention and `attn_norm_2` the FFN."""
    swap = {k.replace("attn_norm_2", "attn_norm"): v for k, v in model.tensors.items() if "attn_norm_2" in k}
    back = {k.replace("attn_norm", "attn_norm_2"): model.tensors[k] for k in swap}
    return replace(model, tensors=model.tensors | swap | back)


def interleaved_heads(model: Model) -> Model:
    """Query head i reads key head i % n_head_kv: the same as reordering the query heads on both sides."""
    n_head, n_head_kv = model.key("attention.head_count"), model.key("attention.head_count_kv")
    order = torch.arange(n_head).view(-1, n_head_kv).T.flatten()
    changed = dict(model.tensors)
    for name, weight in model.tensors.items():
        if "attn_q.weight" in name:
            changed[name] = weight.view(n_head, -1, weight.shape[1])[order].reshape(weight.shape)
        elif "attn_output.weight" in name:
            changed[name] = weight.view(len(weight), n_head, -1)[:, order].reshape(weight.shape)
    return replace(model, tensors=changed)


UNSCALED_MAGNITUDE = 1 / (1 + 0.1 * math.log(4.0))
WRONG: list[tuple[str, str, Callable[[Model], Model]]] = [
    ("llama", "pairs in halves", other_pairs),
    ("falcon-gqa", "adjacent pairs", other_pairs),
    ("falcon-two-norms", "norms swapped", swapped_norms),
    ("llama-gqa", "heads interleaved", interleaved_heads),
    ("llama-bias", "no attention biases", without("attn_q.bias", "attn_k.bias", "attn_v.bias")),
    ("llama-bias", "no output bias", without("attn_output.bias")),
    ("llama-ffn-bias", "no FFN biases", without("ffn_up.bias", "ffn_gate.bias", "ffn_down.bias")),
    ("llama-linear", "not scaled", without("rope.scal")),
    ("llama-linear-legacy", "not scaled", without("rope.scal")),
    ("llama-linear-implied", "not scaled", with_keys(type="none")),
    ("llama-linear-implied", "no attn_factor", without("attn_factor")),
    ("llama-scaling-none", "scaled", with_keys(type="linear")),
    ("llama-yarn", "not scaled", without("rope.scal")),
    ("llama-yarn", "linear", with_keys(type="linear")),
    ("llama-yarn", "no magnitude", with_keys(attn_factor=UNSCALED_MAGNITUDE)),
    ("llama-yarn-short", "training context", without("original_context_length")),
    ("llama-yarn-train-context", "short context", with_keys(original_context_length=16)),
    ("llama-yarn-factors", "no attn_factor", without("attn_factor")),
    ("llama-rope-freqs", "ignored", without("rope_freqs")),
    ("llama-rope-freqs", "multiplied", inverse_factors),
]


@pytest.mark.parametrize("name", CASES)
def test_recordings_belong_to_their_files(name: str) -> None:
    digests = [hashlib.sha256((RECORDED / file).read_bytes()).hexdigest() for file in CASES[name]["files"]]
    assert digests == CASES[name]["sha256"]


@pytest.mark.parametrize("name", CASES)
def test_equations_reproduce_llama_cpp(name: str) -> None:
    recorded = LOGITS[f"{name}.kv_f32"]
    assert recorded.dtype == np.float32
    assert nmse(forward(load(name)), recorded) <= BOUNDS.get(CASES[name]["weight_type"], BOUND_8_BIT)


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["weight_type"] != "F32"])
def test_rounded_activations_explain_the_rest(name: str) -> None:
    assert nmse(forward(replace(load(name), rounded=True)), LOGITS[f"{name}.kv_f32"]) <= BOUND_ROUNDED


@pytest.mark.parametrize("name", CASES)
def test_float16_cache_changes_little(name: str) -> None:
    bound = 1e-6 if CASES[name]["weight_type"] in ("F32", "F16") else BOUND_8_BIT
    assert 0 < nmse(torch.from_numpy(LOGITS[f"{name}.kv_f16"]), LOGITS[f"{name}.kv_f32"]) <= bound


@pytest.mark.parametrize(("name", "mistake", "change"), WRONG, ids=[f"{name}-{mistake}" for name, mistake, _ in WRONG])
def test_recordings_tell_conventions_apart(name: str, mistake: str, change: Callable[[Model], Model]) -> None:
    """A recording is of use only if the mistake it guards against would show, far above every bound in use."""
    assert nmse(forward(change(load(name))), LOGITS[f"{name}.kv_f32"]) > 1e-3, mistake
