"""An engine runs a contiguous range of layers of one model and owns its threads, its KV cache and its tables.

It knows tokens, positions and slots; text, sampling and which sequence is live are the generation loop's. Several
engines can live in one process; a pipeline over ranges is a composition of engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

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
from powerinfer_py.runtime.devices import device_notices
from powerinfer_py.runtime.host_weights import FileWeights
from powerinfer_py.runtime.kv_cache import KVCache
from powerinfer_py.runtime.modes import resolve_sparsity
from powerinfer_py.runtime.threads import default_threads

if TYPE_CHECKING:
    from torch import Tensor

# More is only reserved when asked for or needed by a prompt: the cache of a 13B model costs 0.8 MB a token.
DEFAULT_CONTEXT = 4096


class Engine:
    """Weights, kernels and cache of the layers `layers` (None: all) of an open model file.

    Raises ModelError or UnsupportedError for a file that holds no model it can run, OptionError for options that do not
    fit the model.
    """

    def __init__(self, file: GGUFFile, options: RuntimeOptions, layers: range | None = None) -> None:
        self.options = options
        self.config: ModelConfig = read_config(file, options)
        self.sparsity: Sparsity = resolve_sparsity(options.sparsity, self.config)
        self.layers = range(self.config.n_layer) if layers is None else layers
        if not (0 <= self.layers.start < self.layers.stop <= self.config.n_layer and self.layers.step == 1):
            raise OptionError(f"layers {self.layers} are no part of the model's {self.config.n_layer}")
        n_ctx = _initial_context(self.config, options)
        self.cache = KVCache(
            len(self.layers),
            options.max_batch or 1,
            self.config.n_head_kv,
            n_ctx,
            self.config.head_dim,
            self.config.head_dim_v,
            options.cache_type_k,
            options.cache_type_v,
        )
        self.notices = device_notices(options)
        self.kernels, self._prompt_kernels = _make_kernels(options)
        self.notices += fallback_notices(self.kernels)
        self.transformer, self._frequency_factors = self._load(file)
        self.activity = Activity(len(self.layers), gated=self.transformer.architecture.gated)
        self._rope = self._make_rope(n_ctx)
        # Weights that were copied have to be those of the file that was checked; mapped ones are read at every step.
        _require_unchanged(file.watches)
        self._watches = file.watches if options.use_mmap else ()

    @property
    def n_ctx(self) -> int:
        """Tokens a sequence may hold now."""
        return self.cache.n_ctx

    def reserve(self, n_slots: int, n_ctx: int) -> None:
        """Makes room for more sequences or longer ones. Raises ContextError beyond the model's own context."""
        if n_ctx > self.config.n_ctx_train and n_ctx > self.n_ctx:
            raise ContextError(f"a context of {n_ctx} tokens was asked for, the model has {self.config.n_ctx_train}")
        self.cache.grow(n_slots, n_ctx)
        if self._rope is not None and len(self._rope.cos) < n_ctx:
            self._rope = self._make_rope(n_ctx)

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
        # More tokens than sequences can only be a prompt.
        kernels = self._prompt_kernels if len(batch) > self.cache.n_slots else self.kernels
        x = self.transformer.embed(kernels, batch) if hidden is None else hidden
        step = Step(batch, self.cache.layers, self._rope, self.activity, observer)
        x = self.transformer.run_layers(kernels, x, step)
        if self.layers.stop == self.config.n_layer:
            x = self.transformer.head(kernels, x, batch)
        # After the weights were read, before anything comes of them.
        _require_unchanged(self._watches)
        for slot, token in zip(batch.slots.tolist(), batch.token_ids.tolist(), strict=True):
            self.cache.append(slot, (token,))
        return x

    def _load(self, file: GGUFFile) -> tuple[Transformer, Tensor | None]:
        architecture = architecture_named(self.config.architecture)
        source = FileWeights(file, self.kernels, self.options)
        weights = Assembly(architecture, self.config, source, self.sparsity).model(self.layers)
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
        return Transformer(architecture, self.config, weights, self.layers), factors

    def _make_rope(self, n_ctx: int) -> RopeTable | None:
        if self.config.rope is None:
            return None
        halves = self.transformer.architecture.positions is PositionKind.ROPE_HALVES
        return rope_table(self.config.rope, n_ctx, halves=halves, frequency_factors=self._frequency_factors)


def _require_unchanged(watches: Sequence[FileWatch]) -> None:
    for watch in watches:
        watch.require_unchanged()


def _make_kernels(options: RuntimeOptions) -> tuple[Kernels, Kernels]:
    """Kernels for single tokens and for prompts: the same object unless their numbers of threads differ."""
    threads = options.threads or default_threads()
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
