"""One run of `powerinfer-run`: flags, prompts, the model, its texts or a conversation, timings, in this order.

Not the flags (flags.py), the prompts (prompts.py), the texts (texts.py) or the conversations (conversation.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from powerinfer_py.cli.run.output import note, print_json, print_model, print_timings
from powerinfer_py.cli.run.parser import build_parser, parse
from powerinfer_py.cli.run.prompts import given_prompts
from powerinfer_py.cli.run.settings import check_combination, is_interactive, llm_options, sampling_params
from powerinfer_py.cli.run.signals import Signals
from powerinfer_py.errors import ModelError, OptionError

if TYPE_CHECKING:
    from powerinfer_py.config import SamplingParams
    from powerinfer_py.generation.explanation import Explanation
    from powerinfer_py.generation.llm import LLM


def execute(argv: Sequence[str] | None) -> int:
    """The exit code; SystemExit for --help and wrong usage."""
    args = parse(argv)
    try:
        with Signals() as signals:
            return _run(args, signals)
    except OptionError as error:
        build_parser().error(str(error))


def load_llm(model: Path, args: argparse.Namespace) -> LLM:
    """Loads the model; everything heavy is imported here."""
    from powerinfer_py.generation.llm import LLM

    if args.check_tensors:
        _check_tensors(model)

    return LLM(model, **llm_options(args, model))


def _check_tensors(model: Path) -> None:
    from powerinfer_py.gguf import open_gguf
    from powerinfer_py.gguf.tensor_check import require_sound_tensors

    with open_gguf(model) as file:
        require_sound_tensors(file)


def _run(args: argparse.Namespace, signals: Signals) -> int:
    prompts = given_prompts(args)
    check_combination(args, len(prompts))
    params = sampling_params(args)
    plot = None if args.plot is None else _plot_path(args.plot)
    model = _model_path(args)
    with load_llm(model, args) as llm:
        print_model(llm, params.seed or 0)
        explanation = llm.explain() if args.explain or plot is not None else None
        _generate(llm, model, prompts, params, args, signals, explanation)
        print_timings(llm)
        if explanation is not None:
            _explain(explanation, args, plot)
    # An answer that was interrupted is an ordinary event of a conversation.
    interrupted = signals.exit_code is not None and (signals.terminated or not is_interactive(args))
    return signals.exit_code or 0 if interrupted else 0


def _generate(
    llm: LLM,
    model: Path,
    prompts: list[str],
    params: SamplingParams,
    args: argparse.Namespace,
    signals: Signals,
    explanation: Explanation | None,
) -> None:
    if is_interactive(args):
        from powerinfer_py.cli.run.conversation import converse

        converse(llm, prompts[0] if prompts else None, params, args, signals)
        return
    from powerinfer_py.cli.run.texts import run_texts

    texts = prompts or [""]
    completions = run_texts(llm, texts, params, args, signals, explanation)
    if args.json:
        print_json(llm, model, params.seed or 0, texts, completions, explanation if args.explain else None)


def _plot_path(name: str) -> Path:
    """Where the picture goes; raises what would keep it from being drawn, before the model is loaded."""
    from powerinfer_py.profiler.plot import require_picture

    require_picture(Path(name))
    return Path(name)


def _explain(explanation: Explanation, args: argparse.Namespace, plot: Path | None) -> None:
    if args.explain and not args.json:
        from powerinfer_py.cli.run.explanation_table import explanation_lines

        for line in ["", *explanation_lines(explanation)]:
            note(line)
    if plot is not None:
        from powerinfer_py.cli.run.explanation_plot import draw_explanation

        draw_explanation(explanation, plot)


def _model_path(args: argparse.Namespace) -> Path:
    if args.model is not None:
        return Path(args.model)
    from powerinfer_py.generation.default_model import default_model

    model = default_model()
    if model is None:
        raise ModelError(
            "no model given, and the one that belongs to the package is missing: name a file with -m, or install again"
        )
    return model
