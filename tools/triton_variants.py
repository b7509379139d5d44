"""Every specialisation of every Triton kernel that real models launch, found by running the launchers without a device.

`TritonKernels` runs on torch's `meta` device, where tensors have shapes and no memory, over layers of published shapes;
launches are recorded instead of made. What is recorded is what Triton's just-in-time compiler would be asked for:
types, constants, and which arguments are 1 or multiples of 16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from powerinfer_py.config import Activation
from powerinfer_py.gguf.types import GGMLType
from powerinfer_py.kernels.blocks import (
    AttentionBlock,
    FeedForwardBlock,
    FeedForwardWeights,
    LayerCache,
    Linear,
    Norm,
    Predictor,
)
from powerinfer_py.kernels.matrix import Matrix, RopeTable
from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.attention_rows import attend_rows
from powerinfer_py.kernels.triton.device_rows import STORAGES, DeviceRows, empty_arrays
from powerinfer_py.kernels.triton.kernels import TritonKernels

_META = torch.device("meta")
_NAMES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Variant:
    """One compilation. signature: type of each parameter; constants, multiples: of 16: by name."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    multiples: tuple[str, ...]
    warps: int
    stages: int
    fusion: bool

    @property
    def name(self) -> str:
        """The kernel's name without its ending."""
        return str(self.kernel.__name__).removesuffix("_kernel")

    @property
    def storage(self) -> str:
        """Storage of the weights or cache rows it reads, or nothing."""
        constants = dict(self.constants)
        names = [constants.get(key) for key in ("STORAGE", "UP", "K_TYPE")]
        return next((name for name in names if name), "")


@dataclass(frozen=True)
class Shape:
    """One layer of a published model and what is run on it."""

    name: str
    ggml_type: GGMLType
    n_tokens: int
    n_embd: int = 4096
    n_ff: int = 11008
    n_head: int = 32
    n_head_kv: int = 32
    head_dim: int = 128
    rank: int = 1024
    activation: Activation = Activation.RELU
    gated: bool = True
    biases: bool = False
    layer_norm: bool = False
    fused_qkv: bool = False
    rope: str = "adjacent"
    cache: torch.dtype = torch.float16
    predictor: bool = True
    dense: bool = False
    down_is_transposed: bool = True


def shapes() -> Iterator[Shape]:
    """ReLULLaMA-7B in every storage; the other activations and architectures; a token, a few, a prompt."""
    for n_tokens in (1, 512):
        # F16 first: it is what --quick of the recorder takes of every kernel.
        for ggml_type in sorted(STORAGES, key=lambda one: one is not GGMLType.F16):
            yield Shape("relu-llama-7b", ggml_type, n_tokens)
        for ggml_type in (GGMLType.F16, GGMLType.Q4_0):
            yield Shape("bamboo-7b", ggml_type, n_tokens, n_ff=14336, n_head_kv=8, activation=Activation.DRELU)
            yield Shape("prosparse-7b", ggml_type, n_tokens, activation=Activation.FATRELU)
            yield Shape("arcee", ggml_type, n_tokens, activation=Activation.RELU2, gated=False, rope="halves")
            yield Shape("dense-7b", ggml_type, n_tokens, activation=Activation.SILU, dense=True, predictor=False,
                        down_is_transposed=False)  # fmt: skip
            yield Shape("exact", ggml_type, n_tokens, predictor=False, cache=torch.uint8)
            yield Shape("falcon-40b", ggml_type, n_tokens, n_embd=8192, n_ff=32768, n_head=128, n_head_kv=8,
                        head_dim=64, gated=False, layer_norm=True, fused_qkv=True, rope="halves")  # fmt: skip
            yield Shape("opt-6.7b", ggml_type, n_tokens, n_ff=16384, gated=False, biases=True, layer_norm=True,
                        rope="none")  # fmt: skip
    yield Shape("relu-llama-7b", GGMLType.Q4_0, 4)
    # Short prompts, whose tiles are smaller and whose sums are cut into parts.
    for n_tokens in (16, 32, 64):
        for ggml_type in (GGMLType.F16, GGMLType.Q8_0, GGMLType.Q4_0):
            yield Shape("relu-llama-7b", ggml_type, n_tokens)


# Heads and widths of published models, for attention alone: (query heads, key heads, width).
ATTENTION = {
    "opt-125m": (12, 12, 64),
    "phi-2": (32, 32, 80),
    "phi-3-mini": (32, 32, 96),
    "qwen2.5-1.5b": (12, 2, 128),
    "smollm2-360m": (15, 5, 64),
    "qwen2.5-0.5b": (14, 2, 64),
    "qwen2.5-7b": (28, 4, 128),
    "tinyllama": (32, 4, 64),
    "llama-2-70b": (64, 8, 128),
    "gemma-2b": (8, 1, 256),
    "falcon-7b": (71, 1, 64),
    "llama-3-8b": (32, 8, 128),
    "h2o-danube": (32, 8, 80),
    "danube3-500m": (16, 8, 96),
}


def attention_shapes() -> Iterator[Shape]:
    """Grouped and ungrouped heads of every width, over both types of cache where that has whole blocks."""
    for name, (n_head, n_head_kv, dim) in ATTENTION.items():
        for cache in (torch.float16, torch.uint8):
            if cache is torch.float16 or dim % 32 == 0:
                yield Shape(name, GGMLType.F16, 1, n_head=n_head, n_head_kv=n_head_kv, head_dim=dim, cache=cache)


@dataclass
class Recorder:
    """Stands in for `launch.run`."""

    variants: dict[tuple[Any, ...], Variant] = field(default_factory=dict)

    def run(
        self, kernel: Any, grid: tuple[int, ...], *, warps: int, stages: int = 1, fusion: bool = True, **arguments: Any
    ) -> None:
        """Notes the specialisation that this launch would need."""
        if 0 in grid:
            return
        signature, constants, multiples = [], [], []
        for parameter in kernel.params:
            value = arguments.pop(parameter.name)
            general = parameter.do_not_specialize
            if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not general):
                kind = "constexpr"
                constants.append((parameter.name, value))
            elif isinstance(value, Tensor):
                kind = _NAMES[value.dtype]
                multiples.append(parameter.name)
            elif isinstance(value, float):
                kind = "fp32"
            else:
                kind = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0 and not general:
                    multiples.append(parameter.name)
            signature.append((parameter.name, kind))
        if arguments:
            raise TypeError(f"{kernel.__name__} takes no {', '.join(arguments)}")
        variant = Variant(kernel, tuple(signature), tuple(constants), tuple(multiples), warps, stages, fusion)
        key = (variant.name, *variant.signature, *variant.constants, variant.multiples, warps, stages, fusion)
        self.variants.setdefault(key, variant)


def record_variants() -> list[Variant]:
    """All specialisations of `shapes`, in the order they are first launched."""
    recorder = Recorder()
    with mock.patch.object(launch, "run", recorder.run):
        for shape in shapes():
            _run_layer(TritonKernels(_META), shape)
        for shape in attention_shapes():
            _run_attention(shape)
        # What 7.5 launches for groups.
        with mock.patch.object(launch, "has_tensor_cores", lambda _: False):
            _run_attention(Shape("bamboo-7b", GGMLType.F16, 1, n_head_kv=8))
    return list(recorder.variants.values())


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=_META)


def _matrix(shape: Shape, rows: int, cols: int) -> Matrix:
    storage = STORAGES[shape.ggml_type]
    values, scales = empty_arrays(storage, rows, cols, lambda size, dtype: _empty(*size, dtype=dtype))
    handle = DeviceRows(storage, rows, cols, values, scales, 1.0)
    return Matrix("w", shape.ggml_type, rows, cols, np.zeros(0, np.uint8), handle)


def _run_layer(kernels: TritonKernels, shape: Shape) -> None:
    n_tokens, n_embd, n_ff = shape.n_tokens, shape.n_embd, shape.n_ff
    x = _empty(n_tokens, n_embd)
    norm = Norm(_empty(n_embd), _empty(n_embd) if shape.layer_norm else None, 1e-5, shape.layer_norm)
    places = _empty(n_tokens, dtype=torch.int64)
    kernels.attention_block(_attention(shape, norm), x, x, _cache(shape), places, places, _rope(shape))
    block = _feed_forward(shape, norm)
    counts = _empty(4, dtype=torch.int64)
    kernels.feed_forward_block(block, x, x, observe=shape.name == "exact", counts=counts)
    if block.predictor is not None:
        # A split layer: the mask of its hot half, in rows that lie apart, and the bits of its cold half.
        mask = _empty(n_tokens, n_ff, dtype=torch.bool)
        kernels.pack_mask(mask, n_ff // 2)
    kernels.linear(_matrix(shape, 32000, n_embd), x)
    kernels.rows(_matrix(shape, 32000, n_embd), places)


def _run_attention(shape: Shape) -> None:
    """Attention over what is in the cache, without its projections."""
    n_q, place, cache = shape.n_head * shape.head_dim, _empty(1, dtype=torch.int64), _cache(shape)
    q, y = _empty(1, shape.n_head, shape.head_dim), _empty(1, n_q)
    attend_rows(q, cache.keys, cache.values, place, place, 0.1, y, lambda size, dtype: _empty(*size, dtype=dtype),
                shape.head_dim)  # fmt: skip


def _linear(shape: Shape, rows: int, cols: int) -> Linear:
    return Linear(_matrix(shape, rows, cols), _empty(rows) if shape.biases else None)


def _attention(shape: Shape, norm: Norm) -> AttentionBlock:
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    rows = [n_q + 2 * n_kv] if shape.fused_qkv else [n_q, n_kv, n_kv]
    return AttentionBlock(
        norm=norm,
        qkv=tuple(_linear(shape, n, shape.n_embd) for n in rows),
        output=_linear(shape, shape.n_embd, n_q),
        n_head=shape.n_head,
        n_head_kv=shape.n_head_kv,
        head_dim=shape.head_dim,
        head_dim_v=shape.head_dim,
    )


def _cache(shape: Shape) -> LayerCache:
    width = shape.head_dim if shape.cache is torch.float16 else shape.head_dim // 32 * 34
    keys, values = (_empty(1, shape.n_head_kv, 4096, width, dtype=shape.cache) for _ in range(2))
    return LayerCache(keys, values)


def _rope(shape: Shape) -> RopeTable | None:
    if shape.rope == "none":
        return None
    return RopeTable(_empty(4096, shape.head_dim // 2), _empty(4096, shape.head_dim // 2), shape.rope == "halves")


def _feed_forward(shape: Shape, norm: Norm) -> FeedForwardBlock:
    n_ff, n_embd = shape.n_ff, shape.n_embd
    down = (n_ff, n_embd) if shape.down_is_transposed else (n_embd, n_ff)
    predictor = Predictor(_matrix(shape, shape.rank, n_embd), _matrix(shape, n_ff, shape.rank))
    return FeedForwardBlock(
        norm=norm,
        weights=FeedForwardWeights(
            up=_matrix(shape, n_ff, n_embd),
            gate=_matrix(shape, n_ff, n_embd) if shape.gated else None,
            down=_matrix(shape, *down),
            down_is_transposed=shape.down_is_transposed,
            up_bias=_empty(n_ff) if shape.biases else None,
            down_bias=_empty(n_embd) if shape.biases else None,
        ),
        predictor=predictor if shape.predictor else None,
        activation=shape.activation,
        fatrelu_threshold=0.01,
        sparse_threshold=0.0,
        dense=shape.dense,
    )
