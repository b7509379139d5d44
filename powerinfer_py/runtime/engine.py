"""An engine runs a contiguous range of layers of one model and owns its threads, its KV cache and its tables.

It knows tokens, positions and slots; text, sampling and which sequence is live are the generation loop's. Several
engines can live in one process; a pipeline over ranges is a composition of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerinfer_py.config import ModelConfig, RuntimeOptions, Sparsity
from powerinfer_py.errors import ContextError, OptionError
from powerinfer_py.gguf import GGUFFile
from powerinfer_py.gguf.file_watch import FileWatch
from powerinfer_py.kernels import fallback_notices, make_kernels
from powerinfer_py.kernels.interface import Kernels
from powerinfer_py.kernels.matrix import RopeTable
from powerinfer_py.models.activity import Activity, LayerObserver
from powerinfer_py.models.architecture import PositionKind
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.models.registry import architecture_named
from powerinfer_py.models.rope import rope_table
from powerinfer_py.models.transformer import Step, Transformer
from powerinfer_py.models.weights import Assembly
from powerinfer_py.placement.budget import budget_in_bytes
from powerinfer_py.placement.index_choice import IndexChooser, IndexOptions
from powerinfer_py.placement.placement import Placement
from powerinfer_py.placement.rates import LayerProbe
from powerinfer_py.placement.sizes import model_sizes
from powerinfer_py.runtime.devices import find_device
from powerinfer_py.runtime.host_bytes import host_bytes
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.hybrid.device import Device, Held
from powerinfer_py.runtime.hybrid.layer_probe import LayerTimer, probe_kind
from powerinfer_py.runtime.hybrid.model import Chooser, HybridModel, HybridPlan, make_plan
from powerinfer_py.runtime.hybrid.report import plan_dict, plan_lines
from powerinfer_py.runtime.hybrid.warm_up import warm_up
from powerinfer_py.runtime.kv_cache import KVCache
from powerinfer_py.runtime.modes import resolve_sparsity
from powerinfer_py.runtime.threads import default_threads

if TYPE_CHECKING:
    from torch import Tensor

# More is only reserved when asked for or needed by a prompt: the cache of a 13B model costs 0.8 MB a token.
DEFAULT_CONTEXT = 4096


class Engine:
    """Weights, kernels and cache of the layers `layers` (None: all) of an open model file.

    device: beside the CPU, under `options.vram_budget`; None for the machine's own, where there is one and the options
    want it. choose: what goes where (`hybrid.model.Chooser`); None for the index of the options, or the solver. Raises
    ModelError or UnsupportedError for a file that holds no model it can run, OptionError for options that do not fit
    the model, BudgetError and DeviceError for a budget or a device that cannot be met.
    """

    def __init__(
        self,
        file: GGUFFile,
        options: RuntimeOptions,
        layers: range | None = None,
        *,
        device: Device | None = None,
        choose: Chooser | None = None,
    ) -> None:
        self.options = options
        self.config: ModelConfig = read_config(file, options)
        self.sparsity: Sparsity = resolve_sparsity(options.sparsity, self.config)
        self.layers = range(self.config.n_layer) if layers is None else layers
        if not (0 <= self.layers.start < self.layers.stop <= self.config.n_layer and self.layers.step == 1):
            raise OptionError(f"layers {self.layers} are no part of the model's {self.config.n_layer}")
        self.architecture = architecture_named(self.config.architecture)
        n_ctx = _initial_context(self.config, options)
        self.notices: list[str] = []
        if device is None:
            device, self.notices = find_device(options)
        # A core for the thread that launches and for the driver's own, which wakes the CPU's side.
        self.kernels, self._prompt_kernels = _make_kernels(options, 0 if device is None else device.busy_cores)
        self.notices += fallback_notices(self.kernels)
        plan = None
        if device is not None and options.vram_budget not in (None, 0.0):
            plan = self._plan(file, device, choose, n_ctx)
        self.hybrid: HybridModel | None = None
        self._transformer: Transformer | None = None
        if plan is None:
            self.cache = self._make_cache(n_ctx)
            source = self._source(file, None, self.cache.n_bytes)
            weights = Assembly(self.architecture, self.config, source, self.sparsity).model(self.layers)
            self._transformer = Transformer(self.architecture, self.config, weights, self.layers)
        else:
            source = self._source(file, plan.placement, plan.host_cache_bytes(self.layers))
            self.hybrid = HybridModel(
                plan, self.architecture, self.config, self.sparsity, self.layers, source, source, self.kernels
            )
            self.cache = self._make_cache(n_ctx)
        self._frequency_factors = self._finish_loading(source)
        self.activity = Activity(len(self.layers), gated=self.architecture.gated)
        self._rope = self._make_rope(n_ctx, self._frequency_factors)
        if self.hybrid is not None:
            self.hybrid.connect(self.cache.layers, self._rope)
        # Weights that were copied have to be those of the file that was checked; mapped ones are read at every step,
        # and of split layers rows may be, even where a whole matrix would have been read into memory.
        _require_unchanged(file.watches)
        self._watches = file.watches if options.use_mmap or self.hybrid is not None else ()

    @property
    def n_ctx(self) -> int:
        """Tokens a sequence may hold now."""
        return self.cache.n_ctx

    @property
    def transformer(self) -> Transformer:
        """The layers of an engine that computes on the CPU alone."""
        if self._transformer is None:
            raise ValueError("the layers are on two sides: see `hybrid`")
        return self._transformer

    @property
    def batch_size(self) -> int:
        """Most prompt tokens of one forward; fewer than asked for where a budget has no room for their activations."""
        return self.options.batch_size if self.hybrid is None else self.hybrid.n_tokens

    @property
    def vram(self) -> dict[str, Any]:
        """The ledger and what lies on the device, as JSON values; empty without one."""
        return {} if self.hybrid is None else plan_dict(self.hybrid.plan)

    @property
    def memory_table(self) -> list[str]:
        """The same as lines for a person."""
        return [] if self.hybrid is None else plan_lines(self.hybrid.plan)

    def close(self) -> None:
        """Ends what runs beside the caller. The memory goes with the last reference."""
        if self.hybrid is not None:
            self.hybrid.close()

    def reserve(self, n_slots: int, n_ctx: int) -> None:
        """Makes room for more sequences or longer ones. Raises ContextError beyond the model's own context."""
        if n_ctx > self.config.n_ctx_train and n_ctx > self.n_ctx:
            raise ContextError(f"a context of {n_ctx} tokens was asked for, the model has {self.config.n_ctx_train}")
        self.cache.grow(n_slots, n_ctx)
        if self._rope is not None and len(self._rope.cos) < n_ctx:
            self._rope = self._make_rope(n_ctx, self._frequency_factors)

    def forward(
        self, batch: ForwardBatch, hidden: Tensor | None = None, observer: LayerObserver | None = None
    ) -> Tensor:
        """Runs the engine's layers over a batch and notes its tokens in the cache.

        hidden: (T, n_embd) from the engine before this one; None where this one holds layer 0. Returns logits
        (K, n_vocab) where the last layer is this engine's, else the residual stream (T, n_embd). Raises FileFormatError
        where the file was written to since it was opened, for then nothing that was computed can be trusted.
        """
        if hidden is None and self.layers.start > 0:
            raise ValueError(f"layers {self.layers} need the residual stream of those before them")
        n_tokens = len(batch) if self.hybrid is None else self.hybrid.n_tokens
        results = []
        begin = 0
        for part in batch.chunks(n_tokens):
            results.append(self._forward(part, None if hidden is None else hidden[begin : begin + len(part)], observer))
            begin += len(part)
        if len(results) == 1:
            return results[0]
        import torch

        return torch.cat(results)

    def _forward(self, batch: ForwardBatch, hidden: Tensor | None, observer: LayerObserver | None) -> Tensor:
        # More tokens than sequences can only be a prompt.
        kernels = self._prompt_kernels if len(batch) > self.cache.n_slots else self.kernels
        step = Step(batch, self.cache.layers, self._rope, self.activity, observer)
        if self.hybrid is not None:
            result = self.hybrid.forward(kernels, hidden, step)
        else:
            x = self.transformer.embed(kernels, batch) if hidden is None else hidden
            result = self.transformer.run_layers(kernels, x, step)
            if self.layers.stop == self.config.n_layer:
                result = self.transformer.head(kernels, result, batch)
        # After the weights were read, before anything comes of them.
        _require_unchanged(self._watches)
        for slot, token in zip(batch.slots.tolist(), batch.token_ids.tolist(), strict=True):
            self.cache.append(slot, (token,))
        return result

    def _plan(self, file: GGUFFile, device: Device, choose: Chooser | None, n_ctx: int) -> HybridPlan:
        """What goes where. What the user should know of the choice becomes a notice."""
        options = self.options
        sizes = model_sizes(
            file,
            self.config,
            sparsity=self.sparsity,
            n_ctx=n_ctx,
            n_slots=options.max_batch or 1,
            cache_type_k=options.cache_type_k,
            cache_type_v=options.cache_type_v,
        )

        def load_kernels(held: Held) -> None:
            rope = self._make_rope(n_ctx, None)
            warm_up(device, held, sizes, self.architecture, self.sparsity, options, file, self.kernels, rope)

        context_bytes = device.context_bytes(load_kernels)
        if choose is not None:
            return make_plan(sizes, options, device, context_bytes, choose)
        given = None if options.gpu_index is None else Path(options.gpu_index)
        index = IndexOptions(given, options.reset_gpu_index, options.disable_gpu_index)
        free_bytes = budget_in_bytes(options.vram_budget or 0.0, device.memory) - context_bytes
        timer = LayerTimer(
            device,
            context_bytes,
            file,
            sizes,
            self.architecture,
            self.sparsity,
            options,
            self.kernels,
            self._make_rope(n_ctx, None),
        )
        kind = probe_kind(file, sizes, self.sparsity, options, device.arrangement)
        layers = LayerProbe(kind, timer.measure)
        rates = device.rates(options.threads or default_threads(), free_bytes, layers)
        chooser = IndexChooser(file, self.sparsity, rates, index, context_bytes)
        plan = make_plan(sizes, options, device, context_bytes, chooser)
        if plan.chosen is not None:
            self.notices += plan.chosen.notices
        return plan

    def _source(self, file: GGUFFile, placement: Placement | None, cache_bytes: int) -> FileWeights:
        n_bytes = host_bytes(
            file, self.kernels, self.options, self.architecture, self.config, self.sparsity, self.layers, placement
        )
        return FileWeights(file, self.kernels, self.options, n_bytes, cache_bytes)

    def _make_cache(self, n_ctx: int) -> KVCache:
        return KVCache(
            len(self.layers),
            self.options.max_batch or 1,
            self.config.n_head_kv,
            n_ctx,
            self.config.head_dim,
            self.config.head_dim_v,
            self.options.cache_type_k,
            self.options.cache_type_v,
            None if self.hybrid is None else self.hybrid.kv_regions,
            nullcontext if self.hybrid is None else self.hybrid.plan.device.enqueuing,
        )

    def _finish_loading(self, source: FileWeights) -> Tensor | None:
        """Frequency factors of the rotation, if any; refuses what no part of the graph has asked for."""
        factors = None
        if self.config.rope is not None and source.has("rope_freqs.weight"):
            factors = source.vector("rope_freqs.weight", self.config.rope.n_rot // 2)
        source.refuse_unused(self.layers, self.config.n_layer)
        if source.unpacked_reason is not None:
            self.notices.append(f"weights stay in the file's order, which is slower: {source.unpacked_reason}")
        if source.transposed_bytes:
            self.notices.append(
                f"down projections were transposed at load ({source.transposed_bytes / 2**20:.0f} MiB): sparse modes "
                "need a neuron a row, as PWRI files hold it"
            )
        return factors

    def _make_rope(self, n_ctx: int, factors: Tensor | None) -> RopeTable | None:
        if self.config.rope is None:
            return None
        halves = self.architecture.positions is PositionKind.ROPE_HALVES
        return rope_table(self.config.rope, n_ctx, halves=halves, frequency_factors=factors)


def _require_unchanged(watches: Sequence[FileWatch]) -> None:
    for watch in watches:
        watch.require_unchanged()


def _make_kernels(options: RuntimeOptions, spared: int) -> tuple[Kernels, Kernels]:
    """Kernels for single tokens and for prompts: the same object unless their numbers of threads differ.

    spared: cores that are left to others where the options name no number of threads.
    """
    threads = options.threads or max(1, default_threads() - spared)
    kernels = make_kernels(threads)
    prompt_threads = options.threads_batch or threads
    return kernels, kernels if prompt_threads == threads else make_kernels(prompt_threads)


def _initial_context(config: ModelConfig, options: RuntimeOptions) -> int:
    if options.context_length is None:
        return min(config.n_ctx_train, DEFAULT_CONTEXT)
    if options.context_length > config.n_ctx_train:
        raise ContextError(
            f"a context of {options.context_length} tokens was asked for, the model has {config.n_ctx_train}"
        )
    return options.context_length
