"""The decode loop: all live sequences share one forward a step.

A step runs the last token of every decoding sequence together with the next chunk of one prompt, if one is waiting. A
prompt is computed once for all its completions, and what the cache already holds of it is not computed again. A
sequence's tokens do not depend on its company: every kernel's result for a token is that of the token alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from powerinfer_py.generation.completion import Completion, FinishReason
from powerinfer_py.generation.explanation import Explanation
from powerinfer_py.generation.sequence import Prompt, Sequence
from powerinfer_py.generation.stats import Stats
from powerinfer_py.models.batch import ForwardBatch
from powerinfer_py.runtime.engine import Engine
from powerinfer_py.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

TextCallback = Callable[[int, int, str], None]


class DecodeLoop:
    """Runs prompts to their end. `on_text(prompt_index, completion_index, piece)` hears every new piece of text.

    explanation: watches every forward.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        stats: Stats,
        on_text: TextCallback | None = None,
        cancel: threading.Event | None = None,
        explanation: Explanation | None = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._stats = stats
        self._on_text = on_text
        self.completions: list[Completion] = []
        self._cancel = cancel
        self._explanation = explanation
        self._waiting: deque[Prompt] = deque()
        self._live: list[Sequence] = []
        self._prefilling: Sequence | None = None

    def steps(self, prompts: Iterable[Prompt]) -> Iterator[None]:
        """Runs the prompts to their end, yielding after every step; `completions` then holds the results."""
        self._waiting.extend(prompts)
        while self._waiting or self._live:
            if self._cancel is not None and self._cancel.is_set():
                self._cancel_all()
            else:
                self._step()
            yield
        self.completions.sort(key=lambda completion: (completion.prompt_index, completion.index))

    def _step(self) -> None:
        """Admits what fits, runs one forward, samples."""
        self._admit()
        started = perf_counter()
        n_prompt = -self._stats.prompt_tokens
        batch, sampled = self._make_batch()
        n_prompt += self._stats.prompt_tokens
        if self._explanation is not None:
            self._explanation.begin(len(batch), n_prompt)
        logits = self._engine.forward(batch, observer=self._explanation)
        if self._explanation is not None:
            self._explanation.end()
        self._stats.add_forward(perf_counter() - started, n_prompt, len(batch) - n_prompt)
        self._sample(sampled, logits)

    def _admit(self) -> None:
        """Starts the next prompt in a free slot, reusing the longest prefix that any slot holds."""
        if self._prefilling is not None or not self._waiting or not (free := self._free_slots()):
            return
        prompt = self._waiting.popleft()
        cache = self._engine.cache
        source, n_cached = cache.longest_prefix(prompt.token_ids)
        # The last token runs in any case: its logits are what generation starts from.
        n_cached = min(n_cached, len(prompt.token_ids) - 1)
        slot = source if source in free else min(free, key=lambda s: len(cache.tokens[s]))
        cache.copy_prefix(source, slot, n_cached)
        sequence = Sequence(prompt, prompt.first_index, slot, self._tokenizer)
        sequence.n_cached = n_cached
        sequence.pending = list(prompt.token_ids[n_cached:])
        self._stats.cached_tokens += n_cached
        self._live.append(sequence)
        self._prefilling = sequence

    def _free_slots(self) -> list[int]:
        taken = {sequence.slot for sequence in self._live}
        return [slot for slot in range(self._engine.cache.n_slots) if slot not in taken]

    def _make_batch(self) -> tuple[ForwardBatch, list[Sequence]]:
        """The next tokens of every live sequence, and the sequences whose next logits this forward gives."""
        import torch

        cache = self._engine.cache
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last: list[int] = []
        sampled: list[Sequence] = []
        for sequence in self._live:
            room = max(1, self._engine.batch_size - len(ids))
            chunk = sequence.pending[:room]
            del sequence.pending[:room]
            start = len(cache.tokens[sequence.slot])
            ids += chunk
            positions += range(start, start + len(chunk))
            slots += [sequence.slot] * len(chunk)
            if sequence is self._prefilling:
                self._stats.prompt_tokens += len(chunk)
            if not sequence.pending:
                last.append(len(ids) - 1)
                sampled.append(sequence)
        as_tensor = torch.tensor([ids, positions, slots], dtype=torch.int64)
        logits_of = None if len(last) == len(ids) else torch.tensor(last, dtype=torch.int64)
        return ForwardBatch(as_tensor[0], as_tensor[1], as_tensor[2], logits_of), sampled

    def _sample(self, sequences: list[Sequence], logits: Tensor) -> None:
        started = perf_counter()
        for sequence, row in zip(sequences, logits.numpy(), strict=True):
            takers = [sequence]
            if sequence is self._prefilling:
                self._prefilling = None
                takers += self._fork(sequence)
            for taker in takers:
                room = self._engine.n_ctx - len(self._engine.cache.tokens[taker.slot])
                self._hear(taker, taker.take(row, room))
                if not taker.is_done and room < 1:
                    self._roll_over(taker)
        self._retire()
        self._stats.sample_s += perf_counter() - started

    def _fork(self, leader: Sequence) -> list[Sequence]:
        """The other completions of a prompt that has just been computed; those without a slot wait for one."""
        prompt = leader.prompt
        forks = []
        for index in range(leader.index + 1, prompt.params.n):
            free = self._free_slots()
            if not free:
                self._waiting.appendleft(replace(prompt, first_index=index))
                break
            fork = Sequence(prompt, index, free[0], self._tokenizer)
            self._engine.cache.copy_prefix(leader.slot, fork.slot, len(prompt.token_ids))
            fork.n_cached = len(prompt.token_ids)
            self._live.append(fork)
            forks.append(fork)
        return forks

    def _roll_over(self, sequence: Sequence) -> None:
        cache = self._engine.cache
        kept = sequence.roll_over(cache.tokens[sequence.slot])
        keep = sequence.kept(len(cache.tokens[sequence.slot]))
        cache.truncate(sequence.slot, keep)
        sequence.pending = kept[keep:] + sequence.pending

    def _hear(self, sequence: Sequence, piece: str) -> None:
        if piece and self._on_text is not None:
            self._on_text(sequence.prompt.index, sequence.index, piece)

    def _retire(self) -> None:
        self.completions += [sequence.completion() for sequence in self._live if sequence.is_done]
        self._live = [sequence for sequence in self._live if not sequence.is_done]

    def _cancel_all(self) -> None:
        """Ends what is live where it stands; completions that never started end empty."""
        unstarted = list(self._waiting)
        if self._prefilling is not None:
            unstarted.append(replace(self._prefilling.prompt, first_index=self._prefilling.index + 1))
        for sequence in self._live:
            self._hear(sequence, sequence.finish(FinishReason.CANCELLED))
        self._retire()
        self._waiting.clear()
        for prompt in unstarted:
            for index in range(prompt.first_index, prompt.params.n):
                empty = Sequence(prompt, index, 0, self._tokenizer)
                empty.finish(FinishReason.CANCELLED)
                self.completions.append(empty.completion())
