"""A model without weights for the plumbing of `powerinfer-run`: its tokens are characters, its answers are scripted."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from powerinfer_py.cli import run
from powerinfer_py.cli.run import execution
from powerinfer_py.config import SamplingParams
from powerinfer_py.errors import ContextError
from powerinfer_py.generation.completion import Completion, FinishReason
from powerinfer_py.generation.stopping import StopMatcher

BOS, EOS = 1, 2


@dataclass
class FakeStats:
    """The two views of statistics that the command uses."""

    n_prompt: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {"prompt_tokens": self.n_prompt}

    def lines(self) -> list[str]:
        return [f"prompt {self.n_prompt} tokens"]


@dataclass
class FakeLLM:
    """Answers in turn from `replies`; `before_piece(k)` runs before the k-th character of an answer."""

    replies: list[str] = field(default_factory=lambda: ["abc def"])
    chat_template: object | None = None
    has_bos: bool = True
    context_length: int = 200
    before_piece: Callable[[int], None] = lambda _k: None
    prompts: list[list[int]] = field(default_factory=list)
    chats: list[list[dict[str, str]]] = field(default_factory=list)
    params: list[SamplingParams] = field(default_factory=list)
    keeps: list[int] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        self.config = SimpleNamespace(name="Fake\x1b[31m", architecture="llama")
        self.tokenizer = SimpleNamespace(bos_id=BOS if self.has_bos else None)
        self.sparsity = "dense"
        self.notices = ["a notice"]
        self.memory_table = ["GPU memory: a line"]
        figures = {"types_text": "f16", "n_bytes": 3 << 20, "n_slots": 1, "n_ctx": self.context_length}
        self.kv_cache = SimpleNamespace(**figures, to_dict=lambda: {"bytes": 3 << 20})
        self.stats = FakeStats()
        self.last: Completion | None = None

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def tokenize(self, text: str, add_bos: bool | None = None, special: bool = False) -> list[int]:
        begin = [BOS] if self.has_bos and add_bos is not False else []
        if special:
            text = text.replace("</s>", chr(EOS))
        return begin + [ord(c) for c in text]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i > EOS)

    def stream(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        cancel: threading.Event | None = None,
        keep: int = 0,
        explanation: None = None,
    ) -> Iterator[str]:
        assert explanation is None
        if len(prompt) > self.context_length:
            raise ContextError(f"the prompt has {len(prompt)} tokens, the context holds {self.context_length}")
        self.prompts.append(list(prompt))
        self.params.append(params)
        self.keeps.append(keep)
        self.stats.n_prompt += len(prompt)
        return self._pieces(self.replies[(len(self.prompts) - 1) % len(self.replies)], params, cancel)

    def _pieces(self, reply: str, params: SamplingParams, cancel: threading.Event | None) -> Iterator[str]:
        matcher, reason, ids, text = StopMatcher(params.stop), FinishReason.EOS, [], ""
        for k, character in enumerate(reply):
            self.before_piece(k)
            if cancel is not None and cancel.is_set():
                reason = FinishReason.CANCELLED
                break
            if len(ids) == params.max_tokens:
                reason = FinishReason.LENGTH
                break
            ids.append(ord(character))
            piece = matcher.push(character)
            text += piece
            yield piece
            if matcher.stopped:
                reason = FinishReason.STOP
                break
        held = matcher.flush()
        yield held
        self.last = Completion(0, 0, text + held, ids, reason, params.seed or 0)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        cancel: threading.Event | None = None,
        on_text: Callable[[int, int, str], None] | None = None,
        keep: int = 0,
        explanation: None = None,
    ) -> list[Completion]:
        assert explanation is None
        results = []
        for prompt_index, prompt in enumerate(prompts):
            for index in range(params.n):
                for piece in self.stream(prompt, params, cancel=cancel, keep=keep):
                    if on_text is not None:
                        on_text(prompt_index, index, piece)
                assert self.last is not None
                results.append(
                    replace(self.last, prompt_index=prompt_index, index=index, seed=(params.seed or 0) + index)
                )
        return results

    def stream_chat(
        self, messages: Sequence[dict[str, str]], params: SamplingParams, *, cancel: threading.Event | None = None
    ) -> Iterator[str]:
        self.chats.append([dict(message) for message in messages])
        ids = self.tokenize("".join(message["content"] for message in messages))
        return self.stream(ids, params, cancel=cancel)


@dataclass(frozen=True)
class Outcome:
    """What one run of the command did."""

    code: int
    out: str
    err: str


@dataclass
class Runner:
    """Calls `powerinfer-run` in this process with a scripted model and standard input from bytes."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def __call__(self, llm: FakeLLM, *argv: str, stdin: bytes = b"") -> Outcome:
        self.monkeypatch.setattr(execution, "load_llm", lambda _model, _args: llm)
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            code = run.main(["-m", "fake.gguf", *argv])
        except SystemExit as leave:
            code = int(leave.code or 0)
        captured = self.capsys.readouterr()
        return Outcome(code, captured.out, captured.err)
