"""Counting activations over texts: a run that can be stopped at any moment and goes on where it was.

Invariant: what is saved is what whole chunks gave. A resumed run cuts the same chunks and skips those it has, so that
its counts are those of a run that was never stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from powerinfer_py.config import RuntimeOptions, Sparsity
from powerinfer_py.errors import ModelError, OptionError, UnsupportedError, printable
from powerinfer_py.generation.llm import LLM
from powerinfer_py.gguf import open_gguf
from powerinfer_py.gguf.fingerprint import fingerprint
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.statistics.counts import ActivationCounts
from powerinfer_py.placement.statistics.profile import ActivationProfile, ProfiledModel, ProfiledText, ProfileSettings
from powerinfer_py.profiler.chunks import Chunk, cut_chunks, require_one_chunk
from powerinfer_py.profiler.counts import ActivationCounter
from powerinfer_py.profiler.documents import Document
from powerinfer_py.profiler.folder import ProfileFolder
from powerinfer_py.profiler.forward import run_sequence

DEFAULT_CONTEXT = 512
SAVE_EVERY_S = 30.0
# Told tokens and bytes of text since the last call.
Progress = Callable[[int, int], None]


@dataclass
class ProfileTiming:
    """What this process did of a run. Seconds: in the model, and of these in counting and in predictors beside it."""

    tokens: int = 0
    resumed_tokens: int = 0
    seconds: float = 0.0
    counting_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Tokens of text a second; 0.0 where nothing ran."""
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class ProfilePlan:
    """All that decides a run's numbers. max_tokens: of text, over all documents; None for all of it."""

    path: Path
    model: ProfiledModel
    settings: ProfileSettings
    documents: tuple[Document, ...]
    max_tokens: int | None
    options: RuntimeOptions

    @property
    def run(self) -> str:
        """SHA-256 over all of these but the file's path and the number of threads, which change no number."""
        parts = [
            asdict(self.model),
            asdict(self.settings),
            [document.sha256 for document in self.documents],
            self.max_tokens,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def plan_profile(
    model: Path, documents: Sequence[Document], options: RuntimeOptions | None = None, *, max_tokens: int | None = None
) -> ProfilePlan:
    """Looks at a model file without loading it and settles how it will be run.

    options: context_length None means min(the model's, 512), sparsity is always `exact`.
    Raises OptionError for a model whose neurons never rest, and as `open_gguf` and `read_config` do.
    """
    if not documents:
        raise OptionError("no text was given")
    options = options or RuntimeOptions()
    with open_gguf(model) as file:
        try:
            config = read_config(file, options)
        except (ModelError, UnsupportedError) as error:
            raise type(error)(f"{printable(str(model))}: {error}") from None
        name = fingerprint(file)
    if not config.activation.is_sparse:
        raise OptionError(
            f"{printable(str(model))}: the activation of this model is {config.activation}, with which every neuron "
            "fires for every token: there is nothing to count"
        )
    n_ctx = options.context_length or min(config.n_ctx_train, DEFAULT_CONTEXT)
    settings = ProfileSettings(
        context=n_ctx,
        batch_size=min(options.batch_size, n_ctx),
        cache_type_k=options.cache_type_k.value,
        cache_type_v=options.cache_type_v.value,
    )
    options = replace(
        options,
        sparsity=Sparsity.EXACT,
        context_length=n_ctx,
        batch_size=settings.batch_size,
        max_batch=1,
    )
    return ProfilePlan(model, ProfiledModel.of(config, name), settings, tuple(documents), max_tokens, options)


class ProfileRun:
    """One run of a plan into a folder. Not for use by several threads.

    tell: hears what the user should know about how the model runs, a line each.
    """

    def __init__(
        self,
        plan: ProfilePlan,
        folder: ProfileFolder,
        save_every_s: float = SAVE_EVERY_S,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.plan = plan
        self.folder = folder
        self.timing = ProfileTiming()
        self._save_every_s = save_every_s
        self._tell = tell

    def execute(self, progress: Progress = lambda _tokens, _bytes: None) -> ActivationProfile:
        """The finished statistics, which lie in the folder: made now, resumed, or found there.

        Raises OptionError for too little text, PowerInferError where something cannot be read or written. Whatever ends
        the run, an interrupt included, the chunks that were counted are kept for the next.
        """
        with self.folder.locked():
            finished = self.folder.finished(self.plan.run)
            if finished is not None:
                return finished
            # Found out before the model is loaded; statistics that are there already need no place.
            self.folder.require_writable()
            profile = self._count(self.folder.state(self.plan.run), progress)
            self.folder.finish(profile)
        return profile

    def _count(self, state: ActivationProfile | None, progress: Progress) -> ActivationProfile:
        plan = self.plan
        options = {name: getattr(plan.options, name) for name in RuntimeOptions.__dataclass_fields__}
        with LLM(plan.path, **options) as llm:
            for notice in llm.notices:
                self._tell(notice)
            if plan.max_tokens is None:
                require_one_chunk(llm.tokenizer, plan.documents, plan.settings.context)
            profile = state or self._empty()
            if state is None:
                # A folder that cannot be written is found out before the work, not after it.
                self.folder.save_state(profile)
            self.timing.resumed_tokens = profile.n_tokens
            saved = profile
            try:
                saved_at = perf_counter()
                for chunk in self._remaining(llm, profile.n_chunks, progress):
                    profile = self._with(profile, chunk, self._run_chunk(llm, chunk))
                    progress(chunk.n_tokens, chunk.n_bytes)
                    if perf_counter() - saved_at >= self._save_every_s:
                        self.folder.save_state(profile)
                        saved, saved_at = profile, perf_counter()
            except KeyboardInterrupt:
                if profile is not saved:
                    self.folder.save_state(profile)
                raise
            if profile is not saved:
                # Should the last files find the disk full, nothing has to be counted again.
                self.folder.save_state(profile)
        return profile

    def _remaining(self, llm: LLM, n_done: int, progress: Progress) -> Iterator[Chunk]:
        chunks = cut_chunks(llm.tokenizer, self.plan.documents, self.plan.settings.context, self.plan.max_tokens)
        for number, chunk in enumerate(chunks):
            if number < n_done:
                progress(chunk.n_tokens, chunk.n_bytes)
            else:
                yield chunk

    def _run_chunk(self, llm: LLM, chunk: Chunk) -> ActivationCounts:
        started = perf_counter()
        counter = ActivationCounter(llm.engine, self._zeros())
        counter.n_skipped = chunk.n_prefix
        for _ in run_sequence(llm.engine, chunk.token_ids, observer=counter):
            counter.n_skipped = 0
        self.timing.tokens += chunk.n_tokens
        self.timing.seconds += perf_counter() - started
        self.timing.counting_s += counter.seconds
        return counter.counts

    def _with(self, profile: ActivationProfile, chunk: Chunk, counts: ActivationCounts) -> ActivationProfile:
        """A new profile with one more chunk: an interrupt finds the old one or the new one, nothing between."""
        counts.add(profile.counts)
        begun = self.plan.documents[len(profile.texts) : chunk.document + 1]
        texts = [*profile.texts, *(ProfiledText(document.sha256, document.n_bytes, 0) for document in begun)]
        counted = texts[chunk.document]
        texts[chunk.document] = replace(counted, n_tokens=counted.n_tokens + chunk.n_tokens)
        return replace(profile, texts=tuple(texts), counts=counts, n_chunks=profile.n_chunks + 1)

    def _empty(self) -> ActivationProfile:
        return ActivationProfile(self.plan.model, self.plan.settings, (), self._zeros(), 0, self.plan.run)

    def _zeros(self) -> ActivationCounts:
        model = self.plan.model
        return ActivationCounts.zeros(model.n_layer, model.n_ff, has_predictors=model.has_predictors)
