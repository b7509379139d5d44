"""Runs given prompts to their end: one streamed as it grows, several together and printed whole, in order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from powerinfer_py.cli.run.output import TextOutput, note, print_ending
from powerinfer_py.cli.run.prompts import prompt_tokens
from powerinfer_py.cli.run.signals import Signals
from powerinfer_py.errors import printable

if TYPE_CHECKING:
    from powerinfer_py.config import SamplingParams
    from powerinfer_py.generation.completion import Completion
    from powerinfer_py.generation.explanation import Explanation
    from powerinfer_py.generation.llm import LLM


def run_texts(
    llm: LLM,
    prompts: Sequence[str],
    params: SamplingParams,
    args: argparse.Namespace,
    signals: Signals,
    explanation: Explanation | None = None,
) -> list[Completion]:
    """Completions of all prompts, `params.n` each; their text goes to standard output unless --json was given.

    explanation: to be filled.
    """
    ids = [prompt_tokens(llm, prompt, args) for prompt in prompts]
    output = TextOutput(silent=args.json)
    if len(prompts) == 1 and params.n == 1:
        return [_run_single(llm, ids[0], params, args.keep, output, signals, explanation)]
    return _run_several(llm, prompts, ids, params, args.keep, output, signals, explanation)


def _run_single(
    llm: LLM,
    ids: list[int],
    params: SamplingParams,
    keep: int,
    output: TextOutput,
    signals: Signals,
    explanation: Explanation | None,
) -> Completion:
    with signals.generating() as cancel:
        for piece in llm.stream(ids, params, cancel=cancel, keep=keep, explanation=explanation):
            output.write(piece)
    completion = llm.last
    if completion is None:
        raise RuntimeError("the stream ended without a completion")
    output.end()
    print_ending(completion)
    return completion


def _run_several(
    llm: LLM,
    prompts: Sequence[str],
    ids: list[list[int]],
    params: SamplingParams,
    keep: int,
    output: TextOutput,
    signals: Signals,
    explanation: Explanation | None,
) -> list[Completion]:
    """The first text appears as it grows, the others when all are done."""

    def show_first(prompt_index: int, index: int, piece: str) -> None:
        if prompt_index == index == 0:
            output.write(piece)

    _print_header(prompts, params, 0, 0)
    with signals.generating() as cancel:
        completions = llm.generate(ids, params, cancel=cancel, on_text=show_first, keep=keep, explanation=explanation)
    for position, completion in enumerate(completions):
        if position:
            _print_header(prompts, params, completion.prompt_index, completion.index)
            output.write(completion.text)
        output.end_line()
        print_ending(completion)
    return completions


def _print_header(prompts: Sequence[str], params: SamplingParams, prompt_index: int, index: int) -> None:
    parts = [f"prompt {prompt_index + 1} of {len(prompts)}"] if len(prompts) > 1 else []
    parts += [f"result {index + 1} of {params.n}"] if params.n > 1 else []
    note(f"== {', '.join(parts)}: {printable(prompts[prompt_index], 60)!r} ==")
