"""Splits of the fixture models, and a stand-in for a GPU whose memory is counted from outside."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from helpers_logits import TOKENS
from torch import Tensor

from powerinfer_py.config import ModelConfig
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.placement.budget import Ledger
from powerinfer_py.placement.placement import LayerPlacement, Placement
from powerinfer_py.runtime.engine import Engine
from powerinfer_py.runtime.hybrid.device import Arrangement, Mark
from powerinfer_py.runtime.hybrid.stand_in import StandIn

# NMSE against the CPU executor: with a fixed mask, and where each side's rounding may flip a neuron.
FIXED_MASK = {"f16": 1e-6, "q4": 5e-4}
FREE_MASK = {"f16": 5e-3, "q4": 3e-2}

# How steps are run that are captured.
CAPTURED = [arrangement for arrangement in Arrangement if arrangement is not Arrangement.EAGER]


def bound_of(name: str, sparsity: str) -> float:
    """The bound under which a split of a fixture and the CPU alone agree."""
    bounds = FREE_MASK if sparsity == "predictor" else FIXED_MASK
    return bounds["q4" if name.endswith(".q4") or name.startswith("silu") else "f16"]


class CountedStandIn(StandIn):
    """A stand-in whose live storages are counted as they come and go; fresh memory is NaN in every float type.

    Once it watches a ledger, each copy and each mark, several a layer, checks the ledger against that count.
    """

    def __init__(
        self, kernels: str = "native", context_bytes: int = 0, arrangement: Arrangement = Arrangement.EAGER
    ) -> None:
        super().__init__(kernels, context_bytes=context_bytes, allocate=self._counted, arrangement=arrangement)
        self.live_bytes = 0
        self.peak_bytes = 0
        self.n_checks = 0
        self._ledger: Ledger | None = None

    def watch(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.check()

    def check(self) -> None:
        if self._ledger is None:
            return
        self.n_checks += 1
        held = self.live_bytes + self._context_bytes
        assert held == self._ledger.used_bytes
        assert held <= self._ledger.reserved_bytes <= self._ledger.budget_bytes

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.check()
        super().copy(target, source)

    def mark(self) -> Mark:
        self.check()
        return super().mark()

    def _counted(self, n_bytes: int) -> Tensor:
        memory = torch.full((n_bytes,), 255, dtype=torch.uint8)
        self.live_bytes += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(memory.untyped_storage(), self._gone, n_bytes)
        return memory

    def _gone(self, n_bytes: int) -> None:
        self.live_bytes -= n_bytes


def some_hot(n_ff: int, share: float, seed: int) -> npt.NDArray[np.int32]:
    """A random share of a layer's neurons."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.permutation(n_ff)[: round(share * n_ff)]).astype(np.int32)


def split(config: ModelConfig, share: float, *, blocks: Sequence[bool] | None = None, head: bool = True) -> Placement:
    """A random share of the neurons of every layer whose block is on the device (all blocks, unless stated)."""
    on_device = blocks or [True] * config.n_layer
    none = np.zeros(0, np.int32)
    layers = (LayerPlacement(on, some_hot(config.n_ff, share, i) if on else none) for i, on in enumerate(on_device))
    return Placement(tuple(layers), head_on_gpu=head)


def sequences_of(n: int, n_vocab: int = 512) -> list[list[int]]:
    """`n` sequences of token ids, of unequal length."""
    ids = [token % n_vocab for token in TOKENS]
    return [(ids[i:] + ids[:i])[: len(ids) - (3 * i) % len(ids)] for i in range(n)]


def run_sequences(engine: Engine, sequences: Sequence[Sequence[int]], n_single: int = 2) -> npt.NDArray[np.float32]:
    """Logits of all tokens: the beginnings of all sequences in one forward, then one token of each at a time."""
    for slot in range(len(sequences)):
        engine.cache.truncate(slot, 0)
    logits = []
    cuts = [max(1, len(ids) - n_single) for ids in sequences]
    first = [(token, i, slot) for slot, ids in enumerate(sequences) for i, token in enumerate(ids[: cuts[slot]])]
    logits.append(engine.forward(_batch(first)))
    for step in range(n_single):
        singles = [
            (ids[cut + step], cut + step, slot)
            for slot, (ids, cut) in enumerate(zip(sequences, cuts, strict=True))
            if cut + step < len(ids)
        ]
        if singles:
            logits.append(engine.forward(_batch(singles)))
    return torch.cat(logits).numpy()


def _batch(tokens: Sequence[tuple[int, int, int]]) -> ForwardBatch:
    ids, positions, slots = (torch.tensor(column) for column in zip(*tokens, strict=True))
    return ForwardBatch(ids, positions, slots)
