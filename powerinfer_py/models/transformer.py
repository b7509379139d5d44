"""The transformer that every supported architecture is a variant of: embedding, layers, head.

Everything runs eagerly through a `Kernels` implementation on CPU tensors; where weights and cache live, and how tokens
are batched, is the runtime's business. The residual stream is float32 throughout.

    x -> [ attention block -> residual -> (predictor) -> sparse FFN block -> residual ] x layers -> norm -> head
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from powerinfer_py.config import ModelConfig
from powerinfer_py.kernels.blocks import LayerBlocks, LayerCache
from powerinfer_py.kernels.composition import normalise
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import Matrix, RopeTable
from powerinfer_py.models.activity import Activity, LayerObserver
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.models.weights import LayerWeights, ModelWeights

if TYPE_CHECKING:
    from torch import Tensor

# Up to so many tokens go through layers of so many bytes in one call: with more of either, a call costs nothing beside
# the work, and an interrupt is heard between calls. At 10 GB/s of memory that is a tenth of a second for one token, for
# 16 as long as their products take.
STEP_TOKENS = 16
STEP_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Step:
    """What one forward needs besides the weights. `caches` and `activity` cover the layers of `transformer.layers`."""

    batch: ForwardBatch
    caches: list[LayerCache]
    rope: RopeTable | None
    activity: Activity
    observer: LayerObserver | None = None


def embed(
    kernels: Kernels,
    architecture: Architecture,
    token_embd: Matrix,
    position_embd: Matrix | None,
    batch: ForwardBatch,
) -> Tensor:
    """Token (and learned position) embeddings: (T, n_embd)."""
    x = kernels.rows(token_embd, batch.token_ids)
    if position_embd is not None:
        x = x + kernels.rows(position_embd, batch.positions + architecture.position_offset)
    return x


@dataclass(frozen=True, eq=False)
class Transformer:
    """A contiguous range of layers of one model."""

    architecture: Architecture
    config: ModelConfig
    weights: ModelWeights
    layers: range

    def embed(self, kernels: Kernels, batch: ForwardBatch) -> Tensor:
        """Token (and learned position) embeddings: (T, n_embd)."""
        return embed(kernels, self.architecture, self.weights.token_embd, self.weights.position_embd, batch)

    def run_layers(self, kernels: Kernels, x: Tensor, step: Step) -> Tensor:
        """The residual stream (T, n_embd) after all layers of the range."""
        if step.observer is None and len(step.batch) <= STEP_TOKENS:
            return self._run_few_tokens(kernels, x, step)
        for local, layer in enumerate(self.weights.layers):
            x = self._layer(kernels, local, layer, x, step)
        return x

    @cached_property
    def _step_parts(self) -> tuple[tuple[slice, tuple[LayerBlocks, ...]], ...]:
        return tuple((part, self.weights.blocks[part]) for part in self.weights.runs(STEP_BYTES))

    def _run_few_tokens(self, kernels: Kernels, x: Tensor, step: Step) -> Tensor:
        batch = step.batch
        for part, blocks in self._step_parts:
            result = kernels.run_layers(
                blocks,
                x,
                step.caches[part],
                batch.slots,
                batch.positions,
                step.rope,
                parallel=self.architecture.parallel,
            )
            step.activity.record_layers(part, len(batch) * self.config.n_ff, result)
            x = result.y
        return x

    def head(self, kernels: Kernels, x: Tensor, batch: ForwardBatch) -> Tensor:
        """Logits (K, n_vocab) of the tokens that `batch.logits_of` names."""
        if batch.logits_of is not None:
            x = x[batch.logits_of]
        if not len(x):
            return x.new_empty(0, self.config.n_vocab)
        return kernels.linear(self.weights.output, normalise(kernels, self.weights.output_norm, x))

    def _layer(self, kernels: Kernels, local: int, layer: LayerWeights, x: Tensor, step: Step) -> Tensor:
        batch = step.batch
        attended = kernels.attention_block(
            layer.attention, x, x, step.caches[local], batch.slots, batch.positions, step.rope
        )
        # In a parallel layer the FFN and its predictor see the layer's input, like attention.
        ffn_input = x if self.architecture.parallel else attended
        result = kernels.feed_forward_block(layer.feed_forward, ffn_input, attended, observe=step.observer is not None)
        step.activity.record(local, len(batch) * self.config.n_ff, result)
        if step.observer is not None and result.fired is not None:
            step.observer(self.layers[local], ffn_input, result.predicted, result.fired)
        return result.y
