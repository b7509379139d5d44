"""A model brought into place on two sides: what the engine holds where a device takes part.

Order: the budget in bytes, the context, the prompt chunk, the placement in what is left, memory, weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeGuard

from powerinfer_py.config import ModelConfig, RuntimeOptions, Sparsity
from powerinfer_py.kernels.blocks import LayerCache
from powerinfer_py.kernels.cold_jobs import can_run
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.models.architecture import Architecture
from powerinfer_py.models.transformer import Step, embed
from powerinfer_py.placement.budget import Ledger, budget_in_bytes
from powerinfer_py.placement.fixed_bytes import FixedBytes, choose_chunk, minimum_bytes
from powerinfer_py.placement.index_choice import ChosenPlacement, IndexChooser
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.sizes import ModelSizes, band_bytes, band_neurons
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.bands import Band
from powerinfer_py.runtime.hybrid.buffers import Buffers
from powerinfer_py.runtime.hybrid.captured import CapturedColdSide
from powerinfer_py.runtime.hybrid.cold_side import Exchange, ThreadedColdSide
from powerinfer_py.runtime.hybrid.cold_stream import ColdStream
from powerinfer_py.runtime.hybrid.device import Arrangement, Device, PromptRates
from powerinfer_py.runtime.hybrid.device_memory import DeviceMemory, Region, take_tensor
from powerinfer_py.runtime.hybrid.device_step import DeviceStep
from powerinfer_py.runtime.hybrid.executor import HybridExecutor
from powerinfer_py.runtime.hybrid.layers import DeviceLayer, HostLayer, HybridWeights, Loader
from powerinfer_py.runtime.hybrid.prompt_rates import measure_prompt_rates
from powerinfer_py.runtime.hybrid.reservations import Reserved, reserve, reserve_context
from powerinfer_py.runtime.hybrid.segments import Segment, segments_of
from powerinfer_py.runtime.hybrid.uploads import Uploader

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class HybridPlan:
    """Everything that is decided before a weight is moved. batch_size: the prompt chunk that was asked for. chosen:
    where the placement came from, None where it was handed in."""

    device: Device
    sizes: ModelSizes
    ledger: Ledger
    fixed: FixedBytes
    placement: Placement
    batch_size: int
    chosen: ChosenPlacement | None = None

    def host_cache_bytes(self, layers: range) -> int:
        """Bytes of keys and values of those of `layers` whose blocks are on the CPU."""
        return sum(self.sizes.layers[i].kv_bytes for i in layers if not self.placement.layers[i].block_on_gpu)


# Decides where things go: sizes, bytes for the fixed part, and what is left for the rest.
Chooser = Callable[[ModelSizes, FixedBytes, int], Placement]


def make_plan(
    sizes: ModelSizes,
    options: RuntimeOptions,
    device: Device,
    context_bytes: int,
    choose: Chooser,
    growth_bytes: int = 0,
) -> HybridPlan:
    """What goes where under `options.vram_budget`, which is neither None nor 0.

    choose: is given the sizes, the fixed bytes, and the bytes left for blocks, head and neurons. growth_bytes: see
    `choose_chunk`, which raises BudgetError as `budget_in_bytes` does.
    """
    n_bytes = budget_in_bytes(options.vram_budget or 0.0, device.memory)
    fixed = choose_chunk(sizes, options.batch_size, n_bytes, context_bytes, growth_bytes)
    ledger = Ledger(n_bytes, minimum_bytes(sizes, options.batch_size, context_bytes + growth_bytes))
    reserve_context(ledger, context_bytes)
    placement = choose(sizes, fixed, ledger.free_bytes - fixed.total)
    chosen = choose.chosen if isinstance(choose, IndexChooser) else None
    return HybridPlan(device, sizes, ledger, fixed, placement, options.batch_size, chosen)


class HybridModel:
    """The weights of `layers` on both sides and what runs them.

    The caches' memory on the device is in `kv_regions`; `connect` takes the caches made of it.
    """

    def __init__(
        self,
        plan: HybridPlan,
        architecture: Architecture,
        config: ModelConfig,
        sparsity: Sparsity,
        layers: range,
        host_file: FileWeights,
        device_file: FileWeights,
        host_kernels: Kernels,
    ) -> None:
        self.plan = plan
        self.layers = layers
        self._architecture = architecture
        self._sparsity = sparsity
        self._device_file = device_file
        memory = DeviceMemory(plan.ledger, plan.device.allocate)
        self._reserved: Reserved = reserve(memory, plan.sizes, plan.fixed, plan.placement, layers)
        # Of what is reserved by now only the context's is in use.
        plan.device.open(plan.ledger.reserved_bytes - plan.ledger.used_bytes)
        kernels = plan.device.make_kernels(memory.allocate)
        with plan.device.enqueuing(), Uploader(plan.device, kernels, host_kernels) as uploader:
            loader = Loader(
                architecture,
                config,
                sparsity,
                host_file,
                device_file,
                host_kernels,
                kernels,
                uploader,
                memory,
                self._reserved.weights,
            )
            self.weights: HybridWeights = loader.load(plan.placement, layers)
        self._host_kernels = host_kernels
        self._kernels = kernels
        self._memory = memory
        self._config = config
        self._rope: RopeTable | None = None
        n_tokens, n_layer = plan.fixed.n_tokens, len(plan.sizes.layers)
        self._buffers = Buffers(plan.device, self._reserved.activations, n_tokens, config.n_embd, n_layer)
        self._exchange: Exchange | None = None
        self._cold_side: ThreadedColdSide | None = None
        self._bands: tuple[Band, Band] | None = None
        if (staging := self._reserved.staging) is not None:
            self._exchange = Exchange(plan.device, staging, n_tokens, config.n_embd, config.n_ff)
            self._cold_side = ThreadedColdSide(plan.device, self._exchange)
            n_bytes = band_bytes(plan.sizes)
            first, second = (Band.of(plan.device, staging.take(n_bytes)) for _ in range(2))
            self._bands = first, second
        self._executor: HybridExecutor | None = None

    def connect(self, caches: Sequence[LayerCache], table: RopeTable | None, *, prompts: bool = True) -> None:
        """Makes the model ready to run, once its caches exist; the table of rotations is brought to the device.

        prompts: whether there will be any, for which it is measured where cold neurons are computed.
        """
        with self.plan.device.enqueuing():
            self._rope = None if table is None else self._placed(table)
        step = DeviceStep(
            parallel=self._architecture.parallel,
            device=self.plan.device,
            kernels=self._kernels,
            memory=self._memory,
            buffers=self._buffers,
            layers=self.layers,
            caches=caches,
            rope=self._rope,
            cold_stream=self._cold_stream() if prompts else None,
        )
        self._executor = HybridExecutor(
            config=self._config,
            layers=self.layers,
            segments=segments_of(self.weights.layers, self.weights.head),
            step=step,
            cold_side=self._cold_side,
            captured_side=self._captured_side(),
            max_captured=self.plan.sizes.n_slots,
        )

    @property
    def executor(self) -> HybridExecutor:
        """What runs it. Raises ValueError before `connect`."""
        if self._executor is None:
            raise ValueError("the model has not been connected to its caches")
        return self._executor

    @property
    def n_tokens(self) -> int:
        """Most tokens of one forward."""
        return self.plan.fixed.n_tokens

    @property
    def kv_regions(self) -> dict[int, Region]:
        """Where keys and values of layers on the device lie, by the engine's own numbering of its layers."""
        return {index - self.layers.start: region for index, region in self._reserved.kv.items()}

    def forward(self, host_kernels: Kernels, hidden: Tensor | None, step: Step) -> Tensor:
        """Logits or the residual stream on the CPU, see `HybridExecutor.forward`; hidden: None for the embedding."""
        if hidden is None:
            weights = self.weights
            hidden = embed(host_kernels, self._architecture, weights.token_embd, weights.position_embd, step.batch)
        with self.plan.device.enqueuing():
            return self.executor.forward(host_kernels, hidden, step)

    def use_prompt_rates(self, rates: PromptRates) -> None:
        """Decides by other rates where the cold part of prompts is computed; nothing where no layer is split."""
        executor = self.executor
        if (stream := executor.step.cold_stream) is not None:
            step = replace(executor.step, cold_stream=replace(stream, rates=rates))
            self._executor = replace(executor, step=step)

    def use_segments(self, segments: tuple[Segment, ...]) -> None:
        """Runs these stretches of its layers from now on, and gives up steps that were captured."""
        self.executor.give_up_captured()
        self._executor = replace(self.executor, segments=segments)

    def device_counts(self) -> list[list[int]]:
        """Gate, up and down products and neurons that fired, of each layer on the device in the last forward."""
        return self.executor.step.buffers.counted()

    def close(self) -> None:
        """Ends the thread of the CPU's side, and gives up captured steps with what they hold of the device."""
        if self._cold_side is not None:
            self._cold_side.close()
        if self._executor is not None:
            self._executor.give_up_captured()

    def _cold_stream(self) -> ColdStream | None:
        """None where no layer is split, or none of those can be streamed."""
        if self._bands is None:
            return None
        sizes, device = self.plan.sizes, self.plan.device
        stream = ColdStream(
            architecture=self._architecture,
            config=self._config,
            sparsity=self._sparsity,
            file=self._device_file,
            device=device,
            kernels=self._kernels,
            host_kernels=self._host_kernels,
            memory=self._memory,
            places=self._bands,
            workspace=self._buffers.workspace,
            band=band_neurons(sizes),
            rates=PromptRates(0.0, 1.0, 0.0),
            neuron_bytes=max(layer.neuron_bytes for layer in sizes.layers),
            least_tokens=sizes.n_slots + 1,
        )
        numbered = zip(self.layers, self.weights.layers, strict=True)
        split = next(((i, layer) for i, layer in numbered if is_split(layer) and stream.has_rows(i)), None)
        if split is None:
            return None
        index, layer = split
        kernels, n_tokens = self._host_kernels, self.n_tokens
        with device.enqueuing():
            rates = device.prompt_rates(lambda: measure_prompt_rates(stream, index, layer, kernels, n_tokens))
        return replace(stream, rates=rates)

    def _captured_side(self) -> CapturedColdSide | None:
        """None where steps are run call by call: as asked, or because the CPU's kernels cannot run without Python."""
        device = self.plan.device
        if device.arrangement is Arrangement.EAGER or not can_run(self._host_kernels):
            return None
        return CapturedColdSide(device, self._exchange, device.arrangement)

    def _placed(self, table: RopeTable) -> RopeTable:
        import torch

        def placed(values: Tensor) -> Tensor:
            return take_tensor(self._reserved.tables, tuple(values.shape), torch.float32).copy_(values)

        return RopeTable(placed(table.cos), placed(table.sin), table.halves)


def is_split(layer: DeviceLayer | HostLayer) -> TypeGuard[DeviceLayer]:
    """Whether a layer has neurons on both sides, or its block on the device and its neurons on the CPU."""
    return isinstance(layer, DeviceLayer) and layer.cold is not None


def given(placement: Placement) -> Chooser:
    """A chooser that has nothing to decide."""
    return lambda _sizes, _fixed, _left: placement
