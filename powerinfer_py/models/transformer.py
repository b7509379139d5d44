"""The transformer that every supported architecture is a variant of: embedding, layers, head.

Everything runs eagerly through a `Kernels` implementation on CPU tensors; where weights and cache live, and how tokens
are batched, is the runtime's business. The residual stream is float32 throughout.

    x -> [ norm, attention -> residual -> (predictor) -> norm, sparse FFN -> residual ] x layers -> norm -> head
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from powerinfer_py.config import ModelConfig, Sparsity
from powerinfer_py.kernels.feed_forward import FeedForwardOutput, feed_forward, predict
from powerinfer_py.kernels.interface import Kernels, RopeTable
from powerinfer_py.models.activity import Activity, LayerObserver
from powerinfer_py.models.architecture import Architecture, NormKind
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.models.weights import LayerWeights, ModelWeights, NormWeights

if TYPE_CHECKING:
    from torch import Tensor


class LayerCache:
    """Keys and values of one layer: (n_slots, n_head_kv, n_ctx, head_dim or head_dim_v), float16."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys = keys
        self.values = values


@dataclass(frozen=True, eq=False)
class Step:
    """What one forward needs besides the weights. `caches` and `activity` cover the layers of `transformer.layers`."""

    batch: ForwardBatch
    caches: list[LayerCache]
    rope: RopeTable | None
    activity: Activity
    observer: LayerObserver | None = None


@dataclass(frozen=True, eq=False)
class Transformer:
    """A contiguous range of layers of one model, in one sparsity mode (resolved: never AUTO)."""

    architecture: Architecture
    config: ModelConfig
    weights: ModelWeights
    layers: range
    sparsity: Sparsity

    def embed(self, kernels: Kernels, batch: ForwardBatch) -> Tensor:
        """Token (and learned position) embeddings: (T, n_embd)."""
        x = kernels.rows(self.weights.token_embd, batch.token_ids)
        if self.weights.position_embd is not None:
            offset = self.architecture.position_offset
            x = x + kernels.rows(self.weights.position_embd, batch.positions + offset)
        return x

    def run_layers(self, kernels: Kernels, x: Tensor, step: Step) -> Tensor:
        """The residual stream (T, n_embd) after all layers of the range."""
        for local, layer in enumerate(self.weights.layers):
            x = self._layer(kernels, local, layer, x, step)
        return x

    def head(self, kernels: Kernels, x: Tensor, batch: ForwardBatch) -> Tensor:
        """Logits (K, n_vocab) of the tokens that `batch.logits_of` names."""
        if batch.logits_of is not None:
            x = x[batch.logits_of]
        if not len(x):
            return x.new_empty(0, self.config.n_vocab)
        return kernels.linear(self.weights.output, self._norm(kernels, self.weights.output_norm, x))

    def _layer(self, kernels: Kernels, local: int, layer: LayerWeights, x: Tensor, step: Step) -> Tensor:
        attended = self._attention(kernels, layer, x, step.caches[local], step)
        if self.architecture.parallel:
            # The FFN shares the layer's input with attention, so both are added at once.
            return x + attended + self._feed_forward(kernels, local, layer, x, step)
        x = x + attended
        return x + self._feed_forward(kernels, local, layer, x, step)

    def _attention(self, kernels: Kernels, layer: LayerWeights, x: Tensor, cache: LayerCache, step: Step) -> Tensor:
        config, batch = self.config, step.batch
        h = self._norm(kernels, layer.attention_norm, x)
        q, k, v = self._project(kernels, layer, h)
        if step.rope is not None:
            q = kernels.rope(q, batch.positions, step.rope)
            k = kernels.rope(k, batch.positions, step.rope)
        scale = 1.0 / math.sqrt(config.head_dim)
        mixed = kernels.attention(q, k, v, cache.keys, cache.values, batch.slots, batch.positions, scale)
        return kernels.linear(layer.attention_output.matrix, mixed, layer.attention_output.bias)

    def _project(self, kernels: Kernels, layer: LayerWeights, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (T, n_head, head_dim), keys (T, n_head_kv, head_dim), values (T, n_head_kv, head_dim_v)."""
        config, n_tokens = self.config, h.shape[0]
        outputs = [kernels.linear(linear.matrix, h, linear.bias) for linear in layer.qkv]
        if len(outputs) == 1:
            n_q, n_k = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
            outputs = [part.contiguous() for part in outputs[0].tensor_split((n_q, n_q + n_k), dim=1)]
        q, k, v = outputs
        return (
            q.view(n_tokens, config.n_head, config.head_dim),
            k.view(n_tokens, config.n_head_kv, config.head_dim),
            v.view(n_tokens, config.n_head_kv, config.head_dim_v),
        )

    def _feed_forward(self, kernels: Kernels, local: int, layer: LayerWeights, x: Tensor, step: Step) -> Tensor:
        """`x` is the residual stream the predictor sees; the FFN sees its norm."""
        predicted = None
        if self.sparsity is Sparsity.PREDICTOR and layer.predictor is not None:
            started = perf_counter()
            predicted = predict(kernels, layer.predictor.fc1, layer.predictor.fc2, x, self.config.sparse_threshold)
            step.activity.predictor_s += perf_counter() - started
        output = feed_forward(
            kernels,
            layer.ffn,
            self._norm(kernels, layer.ffn_norm, x),
            activation=self.config.activation,
            fatrelu_threshold=self.config.fatrelu_threshold,
            mask=predicted,
            dense=self.sparsity is Sparsity.DENSE,
        )
        self._record(step.activity, local, layer, output)
        if step.observer is not None:
            step.observer(self.layers[local], x, predicted, output.fired)
        return output.y

    def _record(self, activity: Activity, local: int, layer: LayerWeights, output: FeedForwardOutput) -> None:
        activity.neurons[local] += output.fired.numel()
        activity.fired[local] += int(output.fired.count_nonzero())
        activity.down[local] += output.down_products
        if layer.ffn.gate is None:
            activity.first[local] += output.up_products
        else:
            activity.first[local] += output.gate_products
            activity.second[local] += output.up_products

    def _norm(self, kernels: Kernels, norm: NormWeights, x: Tensor) -> Tensor:
        if self.architecture.norm is NormKind.RMS:
            return kernels.rms_norm(x, norm.weight, self.config.norm_eps)
        return kernels.layer_norm(x, norm.weight, norm.bias, self.config.norm_eps)
