"""`powerinfer-convert`: makes a model file of a checkpoint, or of a GGUF file that is laid out the other way.

A parser over `execution.execute` and `supported.print_supported`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from powerinfer_py.cli.command import command_parser, run_command, version_line
from powerinfer_py.cli.predictor_size import rank, share

PROG = "powerinfer-convert"
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
# The activations that a GGUF file of a sparse model may leave unsaid.
ACTIVATIONS = ("relu", "fatrelu", "relu2")
_DESCRIPTION = """\
Make a model file of a Hugging Face checkpoint (a folder with config.json, safetensors or pytorch_model*.bin, and a
tokenizer), with the predictors of which neurons fire where there are some; or of a GGUF file of a ReLU model (its magic
decides what it is, not its name). The result runs in powerinfer-py, and in PowerInfer where that knows its architecture
and type; what it could not run is said."""
_EXAMPLES = """\
examples:
  powerinfer-convert ReluLLaMA-7B ReluLLaMA-7B-Predictor --outfile relullama.powerinfer.gguf
  powerinfer-convert opt-6.7b                                  without predictors: runs in exact mode
  powerinfer-convert ReluLLaMA-7B predictors --outtype q4_0    quantised on the way
  powerinfer-convert SmolLM2-135M --dense --outtype q8_0       an ordinary GGUF file
  powerinfer-convert relu.gguf predictors --activation relu    from a dense GGUF file, no checkpoint needed
  powerinfer-convert model.powerinfer.gguf --dense             and back again
  powerinfer-convert ReluLLaMA-7B --predictor svd              predictors from the weights alone, no text, no training
  powerinfer-convert ReluLLaMA-7B --dry-run                    what would be written
  powerinfer-convert --print-supported-models
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        PROG,
        _DESCRIPTION,
        _EXAMPLES,
        usage="%(prog)s MODEL [PREDICTOR_DIR] [options]",
    )
    parser.add_argument(
        "paths",
        metavar="MODEL [PREDICTOR_DIR]",
        nargs="*",
        help="folder of the checkpoint, or a GGUF file; folder of its predictors, model_{i}.pt for layer i or "
        "predictors.safetensors",
    )
    parser.add_argument("--outfile", metavar="FILE", help="the file to write (default: a name beside the model)")
    parser.add_argument(
        "--outtype",
        choices=OUTTYPES,
        help="type of the matrices; norms and biases are f32 (default: f16; of a GGUF file, the types it has)",
    )
    parser.add_argument(
        "--dense", action="store_true", help="write an ordinary GGUF file: no predictors, down projections as they are"
    )
    _add_predictor_options(parser.add_argument_group("predictors made on the way"))
    parser.add_argument("--vocab-only", action="store_true", help="write the keys and the vocabulary, no weights")
    parser.add_argument("--pre", metavar="NAME", help="name of the pre-tokenizer, instead of recognising its rules")
    parser.add_argument(
        "--activation", choices=ACTIVATIONS, help="what a GGUF model was trained with, where its file does not say"
    )
    parser.add_argument(
        "--fatrelu-threshold", metavar="T", type=float, help="threshold of --activation fatrelu, for a GGUF file"
    )
    parser.add_argument("-t", "--threads", metavar="N", type=_positive, help="threads that quantise (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, list the tensors, write nothing")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object about what was (or would be) written"
    )
    parser.add_argument(
        "--print-supported-models", action="store_true", help="list architectures, activations and pre-tokenizers"
    )
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_intermixed_args(argv)
    if arguments.print_supported_models:
        from powerinfer_py.cli.convert.supported import print_supported

        print_supported(as_json=arguments.json)
        return 0
    if not 1 <= len(arguments.paths) <= 2:
        parser.error("name a MODEL and at most one PREDICTOR_DIR, or --print-supported-models")
    if (complaint := _misuse(arguments)) is not None:
        parser.error(complaint)
    # numpy takes 0.1 s to import, in which Ctrl-C already ends the command quietly.
    from powerinfer_py.cli.convert.execution import execute

    execute(arguments)
    return 0


def _add_predictor_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--predictor", choices=("svd",), help="make predictors by truncated SVD of the rows that decide who fires"
    )
    group.add_argument(
        "--predictor-rank", metavar="auto|N", type=rank, help="hidden units of a layer, even, or auto (default)"
    )
    group.add_argument(
        "--predictor-budget",
        metavar="SHARE",
        type=share,
        help="of the model's bytes, all predictors together in F16 (default: 10%%)",
    )


def _misuse(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the combination of flags."""
    if arguments.predictor is None:
        given = arguments.predictor_rank is not None or arguments.predictor_budget is not None
        return "--predictor-rank and --predictor-budget belong to --predictor svd" if given else None
    for given, name in (
        (len(arguments.paths) > 1, "a PREDICTOR_DIR"),
        (arguments.dense, "--dense"),
        (arguments.vocab_only, "--vocab-only"),
    ):
        if given:
            return f"--predictor svd and {name} exclude each other"
    return None


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 5 else 0
    if not 1 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no number from 1 to 1024")
    return value
