"""`powerinfer-perplexity`: how well a model predicts a text, and how far a sparsity mode strays from another.

A parser over `profiler.windows` and `profiler.perplexity`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from powerinfer_py.cli.cache_types import add_cache_options, cache_types
from powerinfer_py.cli.command import command_parser, run_command, version_line
from powerinfer_py.cli.streams import remark

if TYPE_CHECKING:
    from powerinfer_py.generation.llm import LLM
    from powerinfer_py.predictor.recall import RecallCounter
    from powerinfer_py.profiler.perplexity import PerplexityResult
    from powerinfer_py.profiler.windows import Window

PROG = "powerinfer-perplexity"
_MODES = ("auto", "predictor", "exact", "dense")
_DESCRIPTION = """\
Measure the perplexity of a model on a text; with --compare also how far its answers stray from another mode's.

By default as llama.cpp measures it: the text is cut into windows of -c tokens, the first of each replaced by the token
that begins texts where the model wants one, and the second half of each is scored. With --stride N windows begin every
N tokens instead and each scores what no window before it did, so that every token is scored once."""
_EPILOG = """\
examples:
  powerinfer-perplexity -m model.powerinfer.gguf -f test.txt
  powerinfer-perplexity -m model.powerinfer.gguf -f test.txt --compare dense
  powerinfer-perplexity -m model.powerinfer.gguf -f test.txt --sparsity exact --compare dense --chunks 20 --json
  powerinfer-perplexity -m model.gguf -f test.txt -c 1024 --stride 512

Errors are standard errors over the scored tokens, taken as independent. --compare runs both modes side by side, so the
memory for packed weights is needed twice; recall and precision of the predictors are against what fires in the mode
compared with."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    from powerinfer_py.cli.values import integer

    count = integer(1)
    parser = command_parser(
        PROG,
        _DESCRIPTION,
        _EPILOG,
    )
    parser.add_argument("-m", "--model", metavar="FILE", required=True, help="model file")
    parser.add_argument("-f", "--file", metavar="TEXT", required=True, help="UTF-8 text file, - for standard input")
    parser.add_argument(
        "--sparsity", choices=_MODES, default="auto", help="the mode that is measured (default: what the file is for)"
    )
    parser.add_argument("--compare", choices=_MODES[1:], help="the mode to compare it with")
    parser.add_argument(
        "-c", "--ctx-size", metavar="N", type=count, help="tokens a window (default: 512, or the model's if less)"
    )
    parser.add_argument("--chunks", metavar="N", type=count, help="stop after N windows (default: all)")
    parser.add_argument("--stride", metavar="N", type=count, help="score every token, with windows N tokens apart")
    parser.add_argument(
        "-b", "--batch-size", metavar="N", type=count, default=512, help="most tokens of one forward (default: 512)"
    )
    parser.add_argument("-t", "--threads", metavar="N", type=count, help="CPU threads (default: physical cores)")
    add_cache_options(parser)
    parser.add_argument("--activation", metavar="NAME", help="activation function, over what the file implies")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = build_parser().parse_args(argv)
    # torch takes a second to import, which a usage error need not wait for.
    from powerinfer_py.config import RuntimeOptions
    from powerinfer_py.profiler.documents import open_documents
    from powerinfer_py.profiler.windows import cut_windows

    (document,) = open_documents([arguments.file])
    n_ctx = _context(arguments)
    with _load(arguments, arguments.sparsity, n_ctx) as llm:
        windows = cut_windows(
            llm.tokenizer, document.read(), n_ctx, stride=arguments.stride, max_windows=arguments.chunks
        )
        result, recall = _measure(arguments, llm, windows, n_ctx)
    report = {
        "model": arguments.model,
        "text_sha256": document.sha256,
        "context": n_ctx,
        "cache_type_k": arguments.cache_type_k or RuntimeOptions.cache_type_k,
        "cache_type_v": arguments.cache_type_v or RuntimeOptions.cache_type_v,
        "stride": arguments.stride,
        **result.to_dict(),
        "predictors": None if recall is None else [layer.to_dict() for layer in recall.layers],
    }
    if arguments.json:
        print(json.dumps(report, allow_nan=False))
    else:
        _print_report(result, recall)
    return 0


def _context(arguments: argparse.Namespace) -> int:
    """Tokens a window: as asked for, else 512 or what the model has."""
    from powerinfer_py.config import RuntimeOptions
    from powerinfer_py.errors import ModelError, UnsupportedError, printable
    from powerinfer_py.gguf import open_gguf
    from powerinfer_py.models.hyperparameters import read_config
    from powerinfer_py.profiler.run import DEFAULT_CONTEXT

    if arguments.ctx_size is not None:
        return int(arguments.ctx_size)
    with open_gguf(arguments.model) as file:
        try:
            config = read_config(file, RuntimeOptions(activation=arguments.activation))
        except (ModelError, UnsupportedError) as error:
            raise type(error)(f"{printable(arguments.model)}: {error}") from None
    return min(config.n_ctx_train, DEFAULT_CONTEXT)


def _load(arguments: argparse.Namespace, sparsity: str, n_ctx: int) -> LLM:
    from powerinfer_py.generation.llm import LLM

    llm = LLM(
        arguments.model,
        sparsity=sparsity,
        threads=arguments.threads,
        context_length=n_ctx,
        batch_size=min(arguments.batch_size, n_ctx),
        max_batch=1,
        activation=arguments.activation,
        **cache_types(arguments),
    )
    for notice in llm.notices:
        remark(f"{PROG}: {notice}")
    return llm


def _measure(
    arguments: argparse.Namespace, llm: LLM, windows: Sequence[Window], n_ctx: int
) -> tuple[PerplexityResult, RecallCounter | None]:
    from powerinfer_py.cli.progress import step_progress
    from powerinfer_py.predictor.recall import RecallCounter
    from powerinfer_py.profiler.perplexity import measure_perplexity

    with step_progress("tokens", sum(len(window.token_ids) for window in windows)) as advance:
        if arguments.compare is None:
            return measure_perplexity(llm, windows, progress=advance), None
        with _load(arguments, arguments.compare, n_ctx) as reference:
            # In predictor mode only predicted neurons can fire, which would say nothing about the predictor.
            tells = arguments.compare != "predictor" and llm.config.has_predictors and llm.config.activation.is_sparse
            recall = RecallCounter(reference.engine) if tells else None
            result = measure_perplexity(llm, windows, reference=reference, observer=recall, progress=advance)
    return result, recall


def _print_report(result: PerplexityResult, recall: RecallCounter | None) -> None:
    from powerinfer_py.cli.tables import key_value_table, make_console

    perplexity, shares = result.perplexity, result.shares
    rows = [
        ("mode", result.sparsity),
        ("tokens", f"{result.tokens} in {result.windows} windows, {result.scored} scored"),
        ("perplexity", f"{perplexity.value:.4f} +/- {perplexity.error:.4f}"),
        ("loss", f"{result.loss.value:.5f} +/- {result.loss.error:.5f} nats a token"),
        ("neurons computed", f"{shares['neurons_computed_share']:.2%}, fired {shares['neurons_fired_share']:.2%}"),
        ("FFN rows read", f"{shares['ffn_rows_read_share']:.2%}"),
        *_comparison_rows(result),
    ]
    console = make_console()
    console.print(key_value_table(rows))
    if recall is not None:
        console.print(_recall_table(recall))
    sys.stdout.flush()
    remark(f"{result.tokens} tokens in {result.seconds:.1f} s ({result.tokens / result.seconds:.1f} tokens/s)")


def _comparison_rows(result: PerplexityResult) -> list[tuple[str, str]]:
    from powerinfer_py.profiler.perplexity import PERCENTILES

    compared = result.comparison
    if compared is None:
        return []
    percentiles = ", ".join(
        f"{percentile:g} %: {value:.3g}" for percentile, value in zip(PERCENTILES, compared.percentiles, strict=True)
    )
    ratio = compared.log_ratio.exponential()
    return [
        (f"perplexity {compared.sparsity}", f"{compared.perplexity.value:.4f} +/- {compared.perplexity.error:.4f}"),
        ("ratio of perplexities", f"{ratio.value:.5f} +/- {ratio.error:.5f}"),
        ("KL divergence", f"{compared.divergence.value:.3g} +/- {compared.divergence.error:.2g} nats a token"),
        ("percentiles of it", f"{percentiles}, largest: {compared.largest:.3g}"),
        ("same first choice", f"{compared.same_top.value:.2%} +/- {compared.same_top.error:.2%}"),
    ]


def _recall_table(recall: RecallCounter) -> Any:
    from rich.table import Table

    table = Table(title="predictors, against what fires", title_justify="left")
    for heading in ("layer", "fired", "predicted", "recall", "precision"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in recall.layers:
        figures = layer.to_dict()
        shares = [figures[name] for name in ("fired_share", "predicted_share", "recall", "precision")]
        table.add_row(str(layer.layer), *(f"{share:.2%}" for share in shares))
    return table
