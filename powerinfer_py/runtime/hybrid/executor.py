"""The step of a model with two sides, operation by operation: the definition of what a captured step computes.

For a split layer the device runs attention, predictor and norm, hands the FFN's input and the cold neurons' bits to the
CPU, computes its hot neurons while the CPU computes the cold ones, and adds up

    y = residual + hot part + cold part        (in this order; the down bias belongs to the hot part)

A layer without cold neurons waits for nobody, and a model that is wholly on the device makes the host wait once, for
the logits. A layer on the CPU runs as everywhere else; the residual stream is copied where sides change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from powerinfer_py.config import ModelConfig
from powerinfer_py.kernels.blocks import FeedForwardResult
from powerinfer_py.kernels.composition import normalise
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.models.transformer import Step
from powerinfer_py.placement.sizes import HEAD_TOKENS
from powerinfer_py.runtime.hybrid.buffers import Buffers
from powerinfer_py.runtime.hybrid.cold_side import ColdSide
from powerinfer_py.runtime.hybrid.device import Device, Mark
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory
from powerinfer_py.runtime.hybrid.layers import DeviceLayer, Head, HostLayer, HybridWeights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class _Run:
    """One forward under way. host_kernels: the CPU's. predictions: marks before and after each of the device's."""

    step: Step
    host_kernels: Kernels
    device_rope: RopeTable | None
    device_layers: list[int] = field(default_factory=list)
    predictions: list[tuple[Mark, Mark]] = field(default_factory=list)

    @property
    def observe(self) -> bool:
        """Whether somebody wants to see the masks."""
        return self.step.observer is not None


@dataclass(frozen=True, eq=False)
class HybridExecutor:
    """Runs a range of layers on both sides.

    parallel: attention and FFN read the layer's input side by side. layers: their numbers in the model. buffers: device
    memory that outlives a block. cold_side: None where no layer is split.
    """

    config: ModelConfig
    parallel: bool
    layers: range
    weights: HybridWeights
    device: Device
    kernels: Kernels
    memory: DeviceMemory
    buffers: Buffers
    cold_side: ColdSide | None

    def forward(self, host_kernels: Kernels, x: Tensor, step: Step, device_rope: RopeTable | None) -> Tensor:
        """Logits (K, n_vocab) where the range ends the model, else the residual stream (T, n_embd), both on the CPU.

        x: (T, n_embd) on the CPU, at most `buffers.n_tokens` tokens. Returns when the device is done.
        """
        run = _Run(step, host_kernels, device_rope)
        n_slots, _, n_ctx, _ = step.caches[0].keys.shape
        self.buffers.begin(step.batch, n_slots, n_ctx)
        on_device = False
        with self.memory.into(self.buffers.workspace):
            for local, layer in enumerate(self.weights.layers):
                x, on_device = self._on_side(x, on_device, isinstance(layer, DeviceLayer))
                if isinstance(layer, DeviceLayer):
                    x = self._device_layer(local, layer, x, run)
                else:
                    x = self._host_layer(local, layer, x, run)
            if on_device:
                self.buffers.send_counts()
            result = self._result(x, on_device, run)
        self._record(run)
        return result

    def _on_side(self, x: Tensor, on_device: bool, wanted: bool) -> tuple[Tensor, bool]:
        """The residual stream on the side where it is wanted."""
        if on_device and not wanted:
            self.buffers.send_counts()
            return self.device.read(x), False
        return (self.buffers.bring_up(x), True) if wanted and not on_device else (x, on_device)

    def _host_layer(self, local: int, layer: HostLayer, x: Tensor, run: _Run) -> Tensor:
        step, batch, weights = run.step, run.step.batch, layer.weights
        attended = run.host_kernels.attention_block(
            weights.attention, x, x, step.caches[local], batch.slots, batch.positions, step.rope
        )
        ffn_input = x if self.parallel else attended
        result = run.host_kernels.feed_forward_block(weights.feed_forward, ffn_input, attended, observe=run.observe)
        step.activity.record(local, len(batch) * self.config.n_ff, result)
        if step.observer is not None and result.fired is not None:
            step.observer(self.layers[local], ffn_input, result.predicted, result.fired)
        return result.y

    def _device_layer(self, local: int, layer: DeviceLayer, x: Tensor, run: _Run) -> Tensor:
        buffers = self.buffers
        buffers.workspace.reset()
        run.device_layers.append(local)
        attended = self.kernels.attention_block(
            layer.attention, x, x, run.step.caches[local], buffers.slots, buffers.positions, run.device_rope
        )
        ffn_input = x if self.parallel else attended
        y = buffers.next_stream()
        if layer.cold is not None:
            self._split_feed_forward(local, layer, ffn_input, attended, y, run)
            return y
        result = self.kernels.feed_forward_block(
            layer.hot, ffn_input, attended, observe=run.observe, counts=buffers.counts(local)
        )
        y.copy_(result.y)
        run.step.activity.predictor_s += result.predictor_s
        self._observe(local, layer, ffn_input, result.predicted, result.fired, run)
        return y

    def _split_feed_forward(
        self, local: int, layer: DeviceLayer, ffn_input: Tensor, residual: Tensor, y: Tensor, run: _Run
    ) -> None:
        """y = residual + hot part + cold part."""
        import torch

        if self.cold_side is None or layer.cold is None:
            raise ValueError("a split layer needs the CPU's side")
        kernels, n_hot, mask = self.kernels, layer.order.hot.size, None
        if layer.predictor is not None:
            before = self.device.mark()
            mask = kernels.predict(layer.predictor, ffn_input, layer.hot.sparse_threshold)
            run.predictions.append((before, self.device.mark()))
        # The bits follow the input in memory, so that one copy takes both down.
        h = normalise(kernels, layer.norm, ffn_input)
        bits = None if mask is None else kernels.pack_mask(mask, n_hot)
        self.cold_side.start(run.host_kernels, layer.cold, h, bits, observe=run.observe)
        hot = None
        if n_hot:
            hot_mask = None if mask is None else mask[:, :n_hot]
            hot = kernels.feed_forward_part(
                layer.hot, h, hot_mask, observe=run.observe, counts=self.buffers.counts(local)
            )
            torch.add(residual, hot.y, out=y)
        else:
            y.copy_(residual)
        sums, cold = self.cold_side.finish()
        y.add_(sums)
        run.step.activity.record(local, 0, cold)
        if run.observe:
            self._observe(local, layer, ffn_input, mask, _both(hot, cold, self.device), run)

    def _observe(
        self,
        local: int,
        layer: DeviceLayer,
        ffn_input: Tensor,
        predicted: Tensor | None,
        fired: Tensor | None,
        run: _Run,
    ) -> None:
        """Shows the observer what it expects: tensors on the CPU, neurons in the file's order."""
        observer = run.step.observer
        if observer is None or fired is None:
            return
        order = layer.order
        named = None if predicted is None else order.in_file_order(self.device.read(predicted))
        observer(self.layers[local], self.device.read(ffn_input), named, order.in_file_order(self.device.read(fired)))

    def _result(self, x: Tensor, on_device: bool, run: _Run) -> Tensor:
        """Logits of the wanted tokens, or the residual stream."""
        head, batch = self.weights.head, run.step.batch
        if head is None:
            return self.device.read(x) if on_device else x
        wanted = range(len(batch)) if batch.logits_of is None else batch.logits_of.tolist()
        if not head.on_device:
            x = (self.device.read(x) if on_device else x)[wanted]
            if not len(x):
                return x.new_empty(0, self.config.n_vocab)
            return run.host_kernels.linear(head.output, normalise(run.host_kernels, head.norm, x))
        if not on_device:
            x = self.buffers.bring_up(x)
        return self._device_head(head, x, wanted)

    def _device_head(self, head: Head, x: Tensor, wanted: list[int] | range) -> Tensor:
        """Logits of tokens `wanted`, some at a time, on the CPU."""
        import torch

        if not wanted:
            self.device.synchronise()
        logits = torch.empty(len(wanted), self.config.n_vocab)
        for begin in range(0, len(wanted), HEAD_TOKENS):
            self.buffers.workspace.reset()
            some = wanted[begin : begin + HEAD_TOKENS]
            if isinstance(some, range):
                rows = x[some.start : some.stop]
            else:
                rows = self.memory.allocate((len(some), self.config.n_embd), torch.float32)
                for place, token in enumerate(some):
                    rows[place].copy_(x[token])
            part = self.kernels.linear(head.output, normalise(self.kernels, head.norm, rows))
            logits[begin : begin + len(some)] = self.device.read(part)
        return logits

    def _record(self, run: _Run) -> None:
        """Adds what the device has counted, which it has by now sent."""
        activity, neurons = run.step.activity, len(run.step.batch) * self.config.n_ff
        counted = self.buffers.counted() if run.device_layers else []
        for local in run.device_layers:
            activity.record_on_device(local, neurons, counted[local])
        activity.predictor_s += sum(after.seconds_since(before) for before, after in run.predictions)


def _both(hot: FeedForwardResult | None, cold: FeedForwardResult, device: Device) -> Tensor | None:
    """Fired neurons of both parts, in the order of places, on the CPU."""
    import torch

    if hot is None or cold.fired is None:
        return cold.fired
    return None if hot.fired is None else torch.cat([device.read(hot.fired), cold.fired], dim=1)
