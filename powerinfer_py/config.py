"""Configuration as frozen dataclasses that are passed as arguments; nothing reads a global.

`ModelConfig` is what a file says about its model, `RuntimeOptions` how to run it, `SamplingParams` how to pick tokens.
Constructors validate; an unknown keyword is a TypeError, as for any dataclass.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from powerinfer_py.errors import OptionError


class Activation(StrEnum):
    """Activation function of an FFN; all but SILU are exactly zero for neurons that do not fire."""

    RELU = "relu"
    RELU2 = "relu2"
    FATRELU = "fatrelu"
    DRELU = "drelu"
    SILU = "silu"

    @property
    def is_sparse(self) -> bool:
        """Whether a neuron can be silent, so that skipping it changes nothing."""
        return self is not Activation.SILU


class Sparsity(StrEnum):
    """Which neurons are computed, see the table of modes in the README. AUTO chooses by what the file holds."""

    AUTO = "auto"
    PREDICTOR = "predictor"
    EXACT = "exact"
    DENSE = "dense"


class CacheType(StrEnum):
    """How the KV cache stores keys or values: float16, or blocks of 32 signed bytes with a float16 scale."""

    F16 = "f16"
    Q8_0 = "q8_0"


class RopeScaling(StrEnum):
    """How rotary positions are stretched. A llama3-type scaling is the tensor `rope_freqs.weight`, not a key."""

    NONE = "none"
    LINEAR = "linear"
    YARN = "yarn"


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding as the file states it.

    n_rot: dimensions of a head that are rotated (even). freq_base: theta of the geometric series.
    factor: context stretch, 1.0 for none. attn_factor: multiplies cosines and sines.
    original_context, beta_*: YaRN only.
    """

    n_rot: int
    freq_base: float = 10000.0
    scaling: RopeScaling = RopeScaling.NONE
    factor: float = 1.0
    original_context: int = 0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """Hyperparameters of one model, read and checked by `models.hyperparameters.read_config`."""

    architecture: str
    name: str
    n_vocab: int
    n_ctx_train: int
    n_embd: int
    n_layer: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    head_dim_v: int
    norm_eps: float
    activation: Activation
    fatrelu_threshold: float = 0.0
    sparse_threshold: float = 0.0
    rope: RopeConfig | None = None
    has_predictors: bool = False
    is_powerinfer: bool = False


@dataclass(frozen=True)
class RuntimeOptions:
    """How a model is run.

    vram_budget: GiB the process may use on the GPU; None for no statement, -1.0 for all that is free.
    gpu_index: file that says which neurons go there; reset_gpu_index: solve again what was kept; disable_gpu_index: no
    neurons at all.
    context_length: tokens a sequence may hold; None for min(model's own, 4096).
    batch_size: most prompt tokens of one forward.
    max_batch: most live sequences, which sizes the KV cache; None to start with one and grow as prompts come.
    cache_type_k, cache_type_v: how the KV cache stores keys and values; names are taken too.
    repack: copy weights out of the file at load, quantised ones into a faster order of rows, where memory allows.
    threads: CPU threads; None for the number of physical cores. threads_batch: the same for prompts; None for threads.
    """

    sparsity: Sparsity = Sparsity.AUTO
    threads: int | None = None
    threads_batch: int | None = None
    context_length: int | None = None
    batch_size: int = 512
    max_batch: int | None = None
    cache_type_k: CacheType = CacheType.F16
    cache_type_v: CacheType = CacheType.F16
    vram_budget: float | None = None
    main_gpu: int | None = None
    gpu_index: str | None = None
    reset_gpu_index: bool = False
    disable_gpu_index: bool = False
    activation: Activation | None = None
    sparse_threshold: float | None = None
    use_mmap: bool = True
    use_mlock: bool = False
    repack: bool = True

    def __post_init__(self) -> None:
        for name in ("threads", "threads_batch", "context_length", "batch_size", "max_batch"):
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and value >= 1):
                raise OptionError(f"{name} must be a positive integer, not {value!r}")
        _require_enum("sparsity", self.sparsity, Sparsity)
        object.__setattr__(self, "sparsity", Sparsity(self.sparsity))
        for name in ("cache_type_k", "cache_type_v"):
            _require_enum(name, getattr(self, name), CacheType)
            object.__setattr__(self, name, CacheType(getattr(self, name)))
        if self.activation is not None:
            _require_enum("activation", self.activation, Activation)
            object.__setattr__(self, "activation", Activation(self.activation))
        budget = self.vram_budget
        if budget is not None and not (_is_finite(budget) and (budget >= 0 or budget == -1)):
            raise OptionError(f"vram_budget must be -1 or a number of GiB >= 0, not {budget!r}")
        if self.sparse_threshold is not None and not _is_finite(self.sparse_threshold):
            raise OptionError(f"sparse_threshold must be a finite number, not {self.sparse_threshold!r}")
        if self.gpu_index is not None and (self.reset_gpu_index or self.disable_gpu_index):
            raise OptionError("gpu_index contradicts reset_gpu_index and disable_gpu_index")
        if self.main_gpu is not None and (not isinstance(self.main_gpu, int) or self.main_gpu < 0):
            raise OptionError(f"main_gpu must be a device number >= 0, not {self.main_gpu!r}")


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are picked; names and defaults as in PowerInfer and llama.cpp, repeat_penalty 1.0 apart.

    max_tokens: new tokens at most; -1 until the end of text or of the context.
    temperature: 0 or less picks the most likely token.
    top_k (0 or less), top_p (1.0) and min_p (0.0): the values in parentheses keep every token.
    repeat_penalty divides positive and multiplies negative logits of tokens among the last repeat_last_n (-1: all);
    presence_penalty is subtracted once, frequency_penalty per occurrence.
    logit_bias: token id -> value added to its logit (-inf bans it). seed: None for a random one.
    n: completions per prompt, completion k seeded seed + k. stop: strings that end the text; they are not part of it.
    logprobs: number of most likely alternatives reported per token, 0 for the token alone, None for no report.
    """

    max_tokens: int = -1
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(isinstance(s, str) and s for s in self.stop):
            raise OptionError("stop must be non-empty strings")
        for name, low in (("max_tokens", -1), ("n", 1), ("repeat_last_n", -1)):
            value = getattr(self, name)
            if not _is_int(value) or value < low:
                raise OptionError(f"{name} must be an integer >= {low}, not {value!r}")
        if not _is_int(self.top_k):
            raise OptionError(f"top_k must be an integer, not {self.top_k!r}")
        for name, lo, hi in (
            ("temperature", -math.inf, math.inf),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("presence_penalty", -math.inf, math.inf),
            ("frequency_penalty", -math.inf, math.inf),
        ):
            value = getattr(self, name)
            if not _is_finite(value) or not lo <= value <= hi:
                raise OptionError(f"{name} must be a finite number in [{lo}, {hi}], not {value!r}")
        if not _is_finite(self.repeat_penalty) or self.repeat_penalty <= 0:
            raise OptionError(f"repeat_penalty must be a number > 0, not {self.repeat_penalty!r}")
        if self.logprobs is not None and not (_is_int(self.logprobs) and 0 <= self.logprobs <= 1000):
            raise OptionError(f"logprobs must be an integer from 0 to 1000, not {self.logprobs!r}")
        if self.seed is not None and not (_is_int(self.seed) and 0 <= self.seed < 2**64):
            raise OptionError(f"seed must be an integer in [0, 2^64), not {self.seed!r}")
        if not isinstance(self.ignore_eos, bool):
            raise OptionError(f"ignore_eos must be True or False, not {self.ignore_eos!r}")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))


def _checked_bias(bias: object) -> dict[int, float]:
    """`bias` with plain integers as keys."""
    if not isinstance(bias, Mapping):
        raise OptionError(f"logit_bias must map token ids to numbers, not {bias!r}")
    checked = {}
    for token, value in bias.items():
        try:
            index, number = operator.index(token), float(value)
        except (TypeError, ValueError):
            index, number = -1, math.nan
        if index < 0 or math.isnan(number) or number == math.inf:
            raise OptionError(f"logit_bias maps token ids to numbers or -inf, not {token!r}: {value!r}")
        checked[index] = number
    return checked


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require_enum(name: str, value: object, kind: type[StrEnum]) -> None:
    if value not in {member.value for member in kind}:
        raise OptionError(f"{name} must be one of {', '.join(m.value for m in kind)}, not {value!r}")
