"""Runs a forward over a model with two sides: stretches of layers on the CPU, and stretches on the device.

The residual stream is copied where sides change, and the host waits for the device once a stretch: for its result. So a
model that is wholly on the device makes the host wait once a token, for the logits. A step that repeats (single tokens
of a number of sequences) is captured the first time, where the device and the CPU's kernels can; the same calls one by
one (`DeviceStep`) are the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from powerinfer_py.config import ModelConfig
from powerinfer_py.kernels.composition import normalise
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.models.transformer import Step
from powerinfer_py.placement.sizes import HEAD_TOKENS
from powerinfer_py.runtime.hybrid.captured import CapturedColdSide, CapturedStep, ColdPart
from powerinfer_py.runtime.hybrid.cold_side import ThreadedColdSide
from powerinfer_py.runtime.hybrid.device_step import DeviceStep, LayerRun
from powerinfer_py.runtime.hybrid.layers import DeviceLayer, HostLayer
from powerinfer_py.runtime.hybrid.segments import Segment

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class HybridExecutor:
    """Runs a range of layers on both sides.

    layers: their numbers in the model. cold_side: None where no layer is split. captured_side: the same for captured
    steps, which are not made where it is None. max_captured: most tokens of a captured step. captured: by segment and
    number of tokens.
    """

    config: ModelConfig
    layers: range
    segments: tuple[Segment, ...]
    step: DeviceStep
    cold_side: ThreadedColdSide | None
    captured_side: CapturedColdSide | None = None
    max_captured: int = 0
    captured: dict[tuple[int, int], CapturedStep] = field(default_factory=dict)

    def forward(self, host_kernels: Kernels, x: Tensor, step: Step) -> Tensor:
        """Logits (K, n_vocab) where the range ends the model, else the residual stream (T, n_embd), both on the CPU.

        x: (T, n_embd) on the CPU, at most `buffers.n_tokens` tokens. Returns when the device is done.
        """
        n_slots, _, n_ctx, _ = step.caches[0].keys.shape
        self.step.buffers.begin(step.batch, n_slots, n_ctx)
        for number, segment in enumerate(self.segments):
            if not segment.on_device:
                x = self._on_host(segment, host_kernels, x, step)
            elif self._is_captured(step):
                x = self._replayed(number, segment, host_kernels, x, step)
            else:
                x = self._on_device(segment, host_kernels, x, step)
        return x

    def give_up_captured(self) -> None:
        """Gives up steps that were captured, with what they hold on either side."""
        if self.captured_side is not None:
            self.captured_side.end()
        self.captured.clear()

    def _on_host(self, segment: Segment, kernels: Kernels, x: Tensor, step: Step) -> Tensor:
        batch = step.batch
        for local, layer in segment.layers:
            if not isinstance(layer, HostLayer):
                raise TypeError(f"layer {self.layers[local]} is on the device")
            weights = layer.weights
            attended = kernels.attention_block(
                weights.attention, x, x, step.caches[local], batch.slots, batch.positions, step.rope
            )
            ffn_input = x if self.step.parallel else attended
            observe = step.observer is not None
            result = kernels.feed_forward_block(weights.feed_forward, ffn_input, attended, observe=observe)
            step.activity.record(local, len(batch) * self.config.n_ff, result)
            if step.observer is not None and result.fired is not None:
                step.observer(self.layers[local], ffn_input, result.predicted, result.fired)
            x = result.y
        if segment.head is None:
            return x
        wanted = _wanted(step)
        if not wanted:
            return x.new_empty(0, self.config.n_vocab)
        rows = x[wanted.start : wanted.stop] if isinstance(wanted, range) else x[wanted]
        return kernels.linear(segment.head.output, normalise(kernels, segment.head.norm, rows))

    def _on_device(self, segment: Segment, host_kernels: Kernels, x: Tensor, step: Step) -> Tensor:
        """One call after the other; the result on the CPU."""
        device, buffers = self.step.device, self.step.buffers
        runs: dict[int, LayerRun] = {}
        buffers.hold(x)
        with self.step.memory.into(buffers.workspace):
            x = buffers.send()
            for local, layer in segment.layers:
                x, runs[local] = self.step.layer(
                    local,
                    _device_layer(layer),
                    x,
                    host_kernels,
                    self.cold_side,
                    observe=step.observer is not None,
                    timed=True,
                )
                self._show(local, _device_layer(layer), runs[local], step)
            buffers.send_counts()
            result = device.read(x) if segment.head is None else self._logits(segment, x, _wanted(step))
        self._record(runs, step)
        return result

    def _logits(self, segment: Segment, x: Tensor, wanted: Sequence[int]) -> Tensor:
        """Logits of tokens `wanted`, some at a time, on the CPU."""
        import torch

        device, buffers, config = self.step.device, self.step.buffers, self.config
        if not wanted:
            device.synchronise()
        logits = torch.empty(len(wanted), config.n_vocab)
        for begin in range(0, len(wanted), HEAD_TOKENS):
            buffers.workspace.reset()
            some = wanted[begin : begin + HEAD_TOKENS]
            if isinstance(some, range):
                rows = x[some.start : some.stop]
            else:
                rows = self.step.memory.allocate((len(some), config.n_embd), torch.float32)
                for place, token in enumerate(some):
                    rows[place].copy_(x[token])
            if segment.head is None:
                raise ValueError("the segment has no head")
            logits[begin : begin + len(some)] = device.read(self.step.head(segment.head, rows))
        return logits

    def _is_captured(self, step: Step) -> bool:
        """Whether a step is one of those that repeat: single tokens, each with its logits, and nobody watches."""
        n_tokens = len(step.batch)
        return (
            self.captured_side is not None
            and 0 < n_tokens <= min(self.max_captured, HEAD_TOKENS)
            and step.batch.logits_of is None
            and step.observer is None
        )

    def _replayed(self, number: int, segment: Segment, host_kernels: Kernels, x: Tensor, step: Step) -> Tensor:
        """The captured step of this segment and number of tokens; the result on the CPU."""
        side, buffers = self.captured_side, self.step.buffers
        if side is None:
            raise ValueError("nothing is captured here")
        buffers.hold(x)
        key = (number, len(step.batch))
        if key not in self.captured:
            self.captured[key] = self._capture(segment, host_kernels, side)
            self._clear(self.captured[key])
        captured = self.captured[key]
        with side.running(captured.cold):
            captured.replay()
        side.require_success()
        counted, counted_here = buffers.counted(), captured.cold.take_counts()
        neurons = len(step.batch) * self.config.n_ff
        step.activity.predictor_s += captured.predictor_s
        for local, _ in segment.layers:
            step.activity.record_on_device(local, neurons, counted[local])
            if local in counted_here:
                step.activity.record_counts(local, 0, counted_here[local])
        return captured.result.clone()

    def _capture(self, segment: Segment, host_kernels: Kernels, side: CapturedColdSide) -> CapturedStep:
        """Captures what `_on_device` does for a batch that is held in the buffers now."""
        import torch

        config, n_tokens = self.config, self.step.buffers.positions.shape[0]
        width = config.n_embd if segment.head is None else config.n_vocab
        result = self.step.device.host_buffer(4 * n_tokens * width).view(torch.float32).view(n_tokens, width)
        layers = {local: _device_layer(layer) for local, layer in segment.layers}
        parts = {
            local: ColdPart(layer.cold, layer.predictor is not None)
            for local, layer in layers.items()
            if layer.cold is not None
        }
        cold = side.prepare(host_kernels, parts, n_tokens)

        def enqueue() -> None:
            buffers = self.step.buffers
            with self.step.memory.into(buffers.workspace):
                x = buffers.send()
                for local, layer in layers.items():
                    x, _ = self.step.layer(local, layer, x, host_kernels, side)
                buffers.send_counts()
                if segment.head is not None:
                    buffers.workspace.reset()
                    x = self.step.head(segment.head, x)
            self.step.device.copy(result, x)

        # A device runs a step once before it captures it.
        with side.running(cold):
            replay = self.step.device.capture(enqueue)
        return CapturedStep(replay, result, cold, self.step.predictor_seconds(list(layers.values())))

    def _clear(self, captured: CapturedStep) -> None:
        """Forgets what a step counted while it was being captured."""
        self.step.device.synchronise()
        captured.cold.take_counts()

    def _record(self, runs: dict[int, LayerRun], step: Step) -> None:
        """Adds what both sides have counted; the device's part has arrived by now."""
        activity, neurons = step.activity, len(step.batch) * self.config.n_ff
        counted = self.step.buffers.counted()
        for local, run in runs.items():
            activity.record_on_device(local, neurons, counted[local])
            if run.cold is not None:
                activity.record(local, 0, run.cold)
            activity.predictor_s += sum(after.seconds_since(before) for before, after in run.predictions)

    def _show(self, local: int, layer: DeviceLayer, run: LayerRun, step: Step) -> None:
        """Shows the observer what it expects: tensors on the CPU, neurons in the file's order."""
        import torch

        masks, read, order = run.masks, self.step.device.read, layer.order
        if step.observer is None or masks is None:
            return
        parts = [] if masks.hot_fired is None else [read(masks.hot_fired)]
        parts += [] if masks.cold_fired is None else [masks.cold_fired]
        predicted = None if masks.predicted is None else order.in_file_order(read(masks.predicted))
        fired = order.in_file_order(torch.cat(parts, dim=1))
        step.observer(self.layers[local], read(masks.predictor_input), predicted, fired)


def _wanted(step: Step) -> Sequence[int]:
    """Tokens whose logits are wanted, a range where that is all of them."""
    batch = step.batch
    if batch.logits_of is None:
        return range(len(batch))
    wanted: list[int] = batch.logits_of.tolist()
    return wanted


def _device_layer(layer: DeviceLayer | HostLayer) -> DeviceLayer:
    if not isinstance(layer, DeviceLayer):
        raise TypeError("a layer of the CPU in a segment of the device")
    return layer
