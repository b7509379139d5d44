"""`LLM`: a model file that can be asked for text, tokens and logits. The package's front door for programs.

It owns one engine and the tokenizer of the file. Calls from several threads are served one after the other.
"""

from __future__ import annotations

import operator
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from powerinfer_py.config import ModelConfig, RuntimeOptions, SamplingParams, Sparsity
from powerinfer_py.errors import (
    ChatTemplateError,
    ContextError,
    ModelError,
    OptionError,
    TokenizerError,
    UnsupportedError,
    printable,
)
from powerinfer_py.generation.completion import Completion
from powerinfer_py.generation.decode import DecodeLoop, TextCallback
from powerinfer_py.generation.explanation import Explanation
from powerinfer_py.generation.sequence import Prompt
from powerinfer_py.generation.stats import Stats
from powerinfer_py.generation.turn import Turn
from powerinfer_py.gguf import open_gguf
from powerinfer_py.kernels.file_faults import report_file_faults
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.runtime.engine import Engine
from powerinfer_py.runtime.hybrid.device import Device
from powerinfer_py.runtime.hybrid.model import Chooser
from powerinfer_py.runtime.kv_cache import KVCache
from powerinfer_py.tokenizer import ChatTemplate, encode_chat, load_tokenizer

if TYPE_CHECKING:
    from powerinfer_py.models.activity import LayerObserver

PromptLike = str | Sequence[int]

# Without `max_batch` the cache grows by itself to this many sequences; beyond it they take turns.
GROWN_BATCH = 8


class LLM:
    """A model ready to run.

    model: path of a `.powerinfer.gguf` or `.gguf` file. vram_budget in GiB. sparsity: "auto", "predictor", "exact" or
    "dense". device: a stand-in for a GPU (`runtime.hybrid.stand_in.StandIn`); None for the machine's own. choose: what
    goes where; None for the GPU index, or the solver. Further keywords are fields of `RuntimeOptions`, such as
    cache_type_k="q8_0". Raises FileFormatError,
    ModelError, UnsupportedError, TokenizerError for the file, OptionError, ContextError and DeviceError for the
    options; later calls raise FileFormatError where the file was written to since. A file that is cut short while it is
    mapped ends the process with exit code 1 and one line, unless the program handles SIGBUS itself.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        vram_budget: float | None = None,
        sparsity: str = "auto",
        threads: int | None = None,
        context_length: int | None = None,
        device: Device | None = None,
        choose: Chooser | None = None,
        **options: Any,
    ) -> None:
        started = perf_counter()
        unknown = sorted(set(options) - set(RuntimeOptions.__dataclass_fields__))
        if unknown:
            raise TypeError(f"LLM() got an unexpected keyword argument {unknown[0]!r}")
        self.options = RuntimeOptions(
            sparsity=sparsity,  # type: ignore[arg-type]  # RuntimeOptions turns the name into a Sparsity or refuses it
            threads=threads,
            context_length=context_length,
            vram_budget=vram_budget,
            **options,
        )
        self._turn = Turn()
        report_file_faults()
        file = open_gguf(model)
        try:
            self.engine = Engine(file, self.options, device=device, choose=choose)
            self.tokenizer = load_tokenizer(file.metadata)
            if self.tokenizer.n_vocab > self.config.n_vocab:
                raise TokenizerError(f"{self.tokenizer.n_vocab} tokens, but the head has {self.config.n_vocab} rows")
            self.chat_template = ChatTemplate.from_metadata(file.metadata, self.tokenizer)
        except (ModelError, UnsupportedError, TokenizerError) as error:
            # Where the trouble is found, the file's name is not known.
            raise type(error)(f"{printable(str(model))}: {error}") from None
        finally:
            # The map lives as long as a weight is read from it.
            file.close()
        self.stats = Stats(self.engine.activity, load_s=perf_counter() - started, vram=self.engine.vram)
        self.last: Completion | None = None

    @property
    def config(self) -> ModelConfig:
        """Hyperparameters of the model."""
        return self.engine.config

    @property
    def sparsity(self) -> Sparsity:
        """The mode that runs, never AUTO."""
        return self.engine.sparsity

    @property
    def context_length(self) -> int:
        """Tokens a sequence may hold."""
        return self.engine.n_ctx

    @property
    def kv_cache(self) -> KVCache:
        """The memory of keys and values: its types, sizes and bytes."""
        return self.engine.cache

    @property
    def notices(self) -> list[str]:
        """What the user should know about how the options were met, a line each."""
        return list(self.engine.notices)

    @property
    def memory_table(self) -> list[str]:
        """What of the VRAM budget goes where, a line each; empty without a GPU."""
        return self.engine.memory_table

    @property
    def load_s(self) -> float:
        """Seconds it took to load."""
        return self.stats.load_s

    def tokenize(self, text: str, add_bos: bool | None = None, special: bool = False) -> list[int]:
        """Token ids of a text that is to be continued, so never with an end token.

        add_bos: None follows the file. special: text that spells a control token becomes that token.
        """
        return self.tokenizer.encode(text, add_bos=add_bos, add_eos=False, special=special)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.decode(token_ids)

    def logits(self, token_ids: Sequence[int], observer: LayerObserver | None = None) -> npt.NDArray[np.float32]:
        """Logits after each token, float32 (n_tokens, n_vocab), of one forward over them from an empty cache."""
        import torch

        ids = self._checked_ids(token_ids)
        with self._turn:
            self.engine.reserve(1, max(self.context_length, len(ids)))
            self.engine.cache.truncate(0, 0)
            result = np.empty((len(ids), self.config.n_vocab), dtype=np.float32)
            size = self.engine.batch_size
            for start in range(0, len(ids), size):
                chunk = torch.tensor(ids[start : start + size], dtype=torch.int64)
                positions = torch.arange(start, start + len(chunk))
                batch = ForwardBatch(chunk, positions, torch.zeros_like(chunk))
                result[start : start + len(chunk)] = self.engine.forward(batch, observer=observer).numpy()
        return result

    def generate(
        self,
        prompts: str | Sequence[PromptLike],
        params: SamplingParams | None = None,
        *,
        cancel: threading.Event | None = None,
        on_text: TextCallback | None = None,
        keep: int = 0,
        explanation: Explanation | None = None,
    ) -> list[Completion]:
        """`params.n` completions of each prompt, those of the first prompt first.

        prompts: one text, or a sequence of texts or of token-id sequences. Prompts and completions run together as far
        as `max_batch` allows. on_text(prompt_index, completion_index, piece) hears the text as it comes. cancel: set it
        from another thread to end everything where it stands. keep: leading prompt tokens that survive when a full
        context drops half of the rest and goes on (-1 for the whole prompt, at most half of the context); with 0 a
        full context ends the text. explanation: from `explain`, to be filled.
        """
        params = params or SamplingParams()
        batch: Sequence[PromptLike] = [prompts] if isinstance(prompts, str) else prompts
        if any(isinstance(prompt, int) for prompt in batch):
            raise OptionError("generate takes a text or a sequence of prompts: put token ids into a list of their own")
        seed = secrets.randbits(32) if params.seed is None else params.seed
        requests = [self._request(i, prompt, params, seed, keep) for i, prompt in enumerate(batch)]
        return self._run(requests, on_text, cancel, explanation)

    def stream(
        self,
        prompt: PromptLike,
        params: SamplingParams | None = None,
        *,
        cancel: threading.Event | None = None,
        keep: int = 0,
        explanation: Explanation | None = None,
    ) -> Iterator[str]:
        """One completion, piece by piece; afterwards `last` holds it whole, or None where the loop was left early."""
        params = replace(params or SamplingParams(), n=1)
        seed = secrets.randbits(32) if params.seed is None else params.seed
        return self._stream(self._request(0, prompt, params, seed, keep), cancel, explanation)

    def chat(self, messages: Sequence[Mapping[str, str]], params: SamplingParams | None = None) -> Completion:
        """The assistant's answer to a conversation of {"role", "content"} messages, through the file's template."""
        return self.generate([self._chat_ids(messages)], replace(params or SamplingParams(), n=1))[0]

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        params: SamplingParams | None = None,
        *,
        cancel: threading.Event | None = None,
    ) -> Iterator[str]:
        """As `chat`, piece by piece. Only what follows the common prefix with earlier turns is computed."""
        return self.stream(self._chat_ids(messages), params, cancel=cancel)

    def explain(self) -> Explanation:
        """An empty account of what each layer does, for one call of `generate` or `stream` to fill."""
        return Explanation(self.engine.activity, self.config.n_ff)

    def close(self) -> None:
        """Ends the use of the model: later calls are refused. Its memory goes with the last reference."""
        self._turn.close()
        self.engine.close()
        if self.chat_template is not None:
            self.chat_template.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if self.chat_template is None:
            raise ChatTemplateError("the file has no chat template: use a plain prompt")
        if isinstance(messages, Mapping) or not all(isinstance(message, Mapping) for message in messages):
            raise ChatTemplateError('a conversation is a sequence of {"role": ..., "content": ...} messages')
        return encode_chat(self.tokenizer, self.chat_template, messages)

    def _request(self, index: int, prompt: PromptLike, params: SamplingParams, seed: int, keep: int) -> Prompt:
        ids = self._checked_ids((self.tokenize(prompt) or self._begin()) if isinstance(prompt, str) else prompt)
        return Prompt(index, tuple(ids), params, seed, keep=len(ids) if keep < 0 else keep)

    def _begin(self) -> list[int]:
        """What an empty text is continued from: the token that begins texts, where the file names one."""
        if self.tokenizer.bos_id is None:
            raise OptionError("the prompt is empty, and this model has no BOS token to start from")
        return [self.tokenizer.bos_id]

    def _checked_ids(self, token_ids: Sequence[int]) -> list[int]:
        try:
            ids = [operator.index(token) for token in token_ids]
        except TypeError:
            raise OptionError("a prompt is a text or a sequence of integer token ids") from None
        if not ids:
            raise OptionError("the sequence of token ids is empty")
        if not 0 <= min(ids) <= max(ids) < self.config.n_vocab:
            raise OptionError(f"token ids must lie in 0 to {self.config.n_vocab - 1}")
        limit = self.context_length if self.options.context_length else self.config.n_ctx_train
        if len(ids) > limit:
            raise ContextError(f"the prompt has {len(ids)} tokens, the context holds {limit}")
        return ids

    def _run(
        self,
        requests: Sequence[Prompt],
        on_text: TextCallback | None,
        cancel: threading.Event | None,
        explanation: Explanation | None,
    ) -> list[Completion]:
        if not requests:
            return []
        with self._turn:
            self._make_room(requests)
            loop = DecodeLoop(self.engine, self.tokenizer, self.stats, on_text, cancel, explanation)
            for _ in loop.steps(requests):
                pass
            self.last = loop.completions[-1]
        return loop.completions

    def _make_room(self, requests: Sequence[Prompt]) -> None:
        """Grows the cache where the options leave its size open."""
        n_sequences = sum(request.params.n for request in requests)
        n_tokens = max(len(request.token_ids) + max(0, request.params.max_tokens) for request in requests)
        n_slots = min(n_sequences, GROWN_BATCH) if self.options.max_batch is None else self.options.max_batch
        if not self.kv_cache.grows:
            # Sequences beyond those that the budget has room for take turns.
            n_slots = self.kv_cache.n_slots
        n_ctx = self.context_length
        if self.options.context_length is None:
            n_ctx = max(n_ctx, min(n_tokens, self.config.n_ctx_train))
        self.engine.reserve(n_slots, n_ctx)

    def _stream(
        self, request: Prompt, cancel: threading.Event | None, explanation: Explanation | None
    ) -> Iterator[str]:
        pieces: list[str] = []
        with self._turn:
            self.last = None
            self._make_room([request])
            on_text: TextCallback = lambda _prompt, _completion, piece: pieces.append(piece)  # noqa: E731
            loop = DecodeLoop(self.engine, self.tokenizer, self.stats, on_text, cancel, explanation)
            for _ in loop.steps([request]):
                yield from pieces
                pieces.clear()
            yield from pieces
            self.last = loop.completions[0]
