"""Conversations at the terminal or through pipes: a chat by the file's template, or plain text with reverse prompts.

Standard output carries what the model says; the marker before an input and all remarks go to standard error. The
history stays in the model's KV cache, so that a turn computes only what is new.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from powerinfer_py.cli.run.output import TextOutput, note, print_ending
from powerinfer_py.cli.run.prompts import begin_of_text, prompt_tokens, unescaped, unreadable
from powerinfer_py.cli.run.settings import is_plain
from powerinfer_py.cli.run.signals import Signals
from powerinfer_py.errors import ContextError, FileFormatError, OptionError

if TYPE_CHECKING:
    from powerinfer_py.config import SamplingParams
    from powerinfer_py.generation.completion import Completion
    from powerinfer_py.generation.llm import LLM


def converse(llm: LLM, prompt: str | None, params: SamplingParams, args: argparse.Namespace, signals: Signals) -> None:
    """Talks until the input ends, /exit, Ctrl-C at the prompt, or SIGTERM. prompt: what -p or -f gave, if anything.

    Raises OptionError where --system is given and the file has no chat template.
    """
    reader = InputReader(args)
    if llm.chat_template is not None and not is_plain(args):
        Chat(llm, params, args, signals, reader).run(prompt)
        return
    if args.system is not None:
        raise OptionError("--system needs a chat template, and this model has none")
    PlainDialogue(llm, params, args, signals, reader).run(prompt or "")


class InputReader:
    """Inputs of the user, each of one line or several. Raises FileFormatError for what cannot be read as UTF-8."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._multiline: bool = args.multiline_input
        self._at_terminal = sys.stdin.isatty()
        self._edits_lines = self._at_terminal and sys.stdout.isatty() and not args.simple_io
        if self._edits_lines:
            import readline  # noqa: F401, gives input() its line editing and history

    def read(self, marker: str) -> str | None:
        r"""The next input without its line break, or None at the end of input or Ctrl-C.

        A line that ends in \ goes on; with --multiline-input it is the line that ends in \ that is the last.
        """
        lines: list[str] = []
        while True:
            line = self._read_line(marker if not lines else "")
            if line is None:
                return "\n".join(lines) if lines else None
            continues = line.endswith("\\") != self._multiline
            lines.append(line.removesuffix("\\"))
            if not continues:
                return "\n".join(lines)

    def _read_line(self, marker: str) -> str | None:
        try:
            if self._edits_lines:
                return input(marker)
            if self._at_terminal:
                print(marker, end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            note("")
            return None
        except UnicodeDecodeError:
            raise FileFormatError("is not UTF-8 text", path="standard input") from None
        except OSError as error:
            raise unreadable("standard input", error) from None
        return line.removesuffix("\n").removesuffix("\r") if line else None


class Chat:
    """A chat by the file's template. /clear forgets the conversation, /exit ends it."""

    def __init__(
        self, llm: LLM, params: SamplingParams, args: argparse.Namespace, signals: Signals, reader: InputReader
    ) -> None:
        self._llm = llm
        self._params = params
        self._escape: bool = args.escape
        self._signals = signals
        self._reader = reader
        system = None if args.system is None else unescaped(args.system) if args.escape else args.system
        self._opening = [] if system is None else [{"role": "system", "content": system}]
        self._messages = list(self._opening)
        self._output = TextOutput()

    def run(self, first: str | None) -> None:
        """Answers `first`, if given, then every input until one ends the chat."""
        note("chat: /exit or end of input leaves, /clear starts anew, Ctrl-C interrupts an answer")
        text = first or self._read()
        while text is not None and text.strip() != "/exit":
            if text.strip() == "/clear":
                self._messages = list(self._opening)
            elif text.strip():
                self._answer(text)
            if self._signals.terminated:
                return
            text = self._read()

    def _read(self) -> str | None:
        text = self._reader.read("> ")
        return unescaped(text) if text is not None and self._escape else text

    def _answer(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        try:
            with self._signals.generating() as cancel:
                for piece in self._llm.stream_chat(self._messages, self._params, cancel=cancel):
                    self._output.write(piece)
        except ContextError as error:
            self._messages.pop()
            note(f"{error}; /clear starts anew")
            return
        completion = _last(self._llm)
        self._output.end_line()
        print_ending(completion)
        self._messages.append({"role": "assistant", "content": completion.text})


class PlainDialogue:
    """One growing text that the model and the user write in turns, as PowerInfer's interactive mode."""

    def __init__(
        self, llm: LLM, params: SamplingParams, args: argparse.Namespace, signals: Signals, reader: InputReader
    ) -> None:
        self._llm = llm
        self._params = params
        self._args = args
        self._signals = signals
        self._reader = reader
        self._output = TextOutput()
        self._ids: list[int] = []
        self._n_prompt = self._n_before_input = 0
        texts = (args.in_prefix, args.in_suffix, *(args.reverse_prompt or []))
        ready: list[str] = [unescaped(text) if args.escape else text for text in texts]
        self._prefix, self._suffix, *self._reverse_prompts = ready

    def run(self, prompt: str) -> None:
        """Continues `prompt`, then takes turns until the input ends or the context is full."""
        note("interactive: an empty line lets the model go on, end of input leaves, Ctrl-C interrupts")
        self._ids = prompt_tokens(self._llm, prompt, self._args)
        self._n_prompt = self._n_before_input = len(self._ids)
        keep = len(self._ids) if self._args.keep < 0 else self._args.keep
        waits = bool(self._args.interactive_first)
        while True:
            if not waits and not self._write(keep):
                return
            waits = False
            text = self._reader.read(self._prefix)
            if text is None:
                return
            if text:
                self._append_input(text)

    def _write(self, keep: int) -> bool:
        """Lets the model write; returns whether the dialogue goes on. An input that does not fit is left out again."""
        if keep:
            self._roll_over(keep)
        try:
            with self._signals.generating() as cancel:
                for piece in self._llm.stream(self._ids, self._params, cancel=cancel, keep=keep):
                    self._output.write(piece)
        except ContextError as error:
            if len(self._ids) == self._n_before_input:
                raise
            del self._ids[self._n_before_input :]
            note(f"{error}; this input is left out")
            return True
        completion = _last(self._llm)
        self._ids += completion.token_ids
        if completion.finish_reason == "stop":
            self._output.write(self._reverse_prompt_of(completion))
        elif completion.finish_reason == "eos" and self._reverse_prompts:
            self._output.end_line()
            note(self._reverse_prompts[0])
            self._ids += self._llm.tokenize(self._reverse_prompts[0], add_bos=False, special=True)
        self._n_before_input = len(self._ids)
        print_ending(completion)
        return completion.finish_reason != "context" and not self._signals.terminated

    def _roll_over(self, keep: int) -> None:
        """Makes room for the input as a full context does for a text: the older half of the rest goes, as often as
        needed. Nothing goes for an input that would not fit even so."""
        n_ctx = self._llm.context_length
        kept = min(keep, self._n_prompt, n_ctx // 2)
        if kept + len(self._ids) - self._n_before_input > n_ctx:
            return
        while len(self._ids) > n_ctx:
            n_dropped = (self._n_before_input - kept + 1) // 2
            del self._ids[kept : kept + n_dropped]
            self._n_before_input -= n_dropped

    def _reverse_prompt_of(self, completion: Completion) -> str:
        """The reverse prompt that ended the text: the model wrote it, so it is shown; "" for a --stop string."""
        from powerinfer_py.generation.stopping import StopMatcher

        matcher = StopMatcher(self._params.stop)
        matcher.push(self._llm.detokenize(completion.token_ids))
        matched = matcher.matched
        return matched if matched is not None and matched in self._reverse_prompts else ""

    def _append_input(self, text: str) -> None:
        r"""Puts an input with its line break behind the text; one that ends in / goes without the line break."""
        line = unescaped(text) if self._args.escape else text
        line = line.removesuffix("/") if line.endswith("/") else line + "\n"
        if self._args.in_prefix_bos:
            self._ids += begin_of_text(self._llm)
        for part, special in ((self._prefix, True), (line, False), (self._suffix, True)):
            if part:
                self._ids += self._llm.tokenize(part, add_bos=False, special=special)


def _last(llm: LLM) -> Completion:
    if llm.last is None:
        raise RuntimeError("the stream ended without a completion")
    return llm.last
