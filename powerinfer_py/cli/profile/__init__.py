"""`powerinfer-profile`: counts which neurons of a model fire on a text, or merges such counts.

A parser over `profiler.run`, `profiler.folder` and `profiler.report`; what is printed lies in `output.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from powerinfer_py.cli.cache_types import add_cache_options
from powerinfer_py.cli.command import command_parser, run_command, version_line

PROG = "powerinfer-profile"
# What a recipe may set.
RECIPE_OPTIONS: dict[str, tuple[type, ...]] = {
    "tokens": (int,),
    "ctx_size": (int,),
    "batch_size": (int,),
    "cache_type_k": (str,),
    "cache_type_v": (str,),
}
DEFAULT_BATCH = 512
_DESCRIPTION = """\
Count how often each neuron of a model with a ReLU-type FFN fires on a text, in exact mode. The counts tell
powerinfer-gpuidx and powerinfer-run which neurons belong on the GPU.

Each text is cut into chunks of -c tokens that run from an empty context; a chunk begins with the token that begins
texts where the model wants one, which is run but not counted. All other tokens are counted once."""
_EPILOG = """\
examples:
  powerinfer-profile -m model.powerinfer.gguf                        the built-in text; activation/ beside the model
  powerinfer-profile -m model.powerinfer.gguf -f a.txt b.txt -o out/
  powerinfer-profile -m model.powerinfer.gguf -f a.txt --recipe profiling/recipes/relu_llama.toml
  zcat corpus.gz | powerinfer-profile -m model.powerinfer.gguf -f - --tokens 200000
  powerinfer-profile --merge out-1/ out-2/ out-3/ -o activation/     runs over different texts become one
  powerinfer-profile -m model.powerinfer.gguf --plot hot.png --json

The folder gets activation_{i}.pt, as PowerInfer reads them, and activation.safetensors with the same counts, what was
run and how, and where the model has predictors how often each neuron was predicted. A run that was stopped goes on
when the same command is given again; one that is finished is only reported. Statistics serve every model file of the
same architecture and dimensions, whatever its weight types."""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    from powerinfer_py.cli.values import integer

    count = integer(1)
    parser = command_parser(
        PROG,
        _DESCRIPTION,
        _EPILOG,
    )
    parser.add_argument("-m", "--model", metavar="FILE", help="model file")
    parser.add_argument(
        "-f",
        "--file",
        metavar="TEXT",
        nargs="+",
        action="extend",
        help="UTF-8 text files, - for standard input (default: six chapters of a novel that come with the package)",
    )
    parser.add_argument("--recipe", metavar="TOML", help="a model family's defaults for the options below")
    parser.add_argument("-o", "--output", metavar="DIR", help="folder to write (default: activation/ beside the model)")
    parser.add_argument("--tokens", metavar="N", type=count, help="stop after N tokens of text (default: all)")
    parser.add_argument(
        "-c", "--ctx-size", metavar="N", type=count, help="tokens a chunk (default: 512, or the model's if less)"
    )
    parser.add_argument(
        "-b", "--batch-size", metavar="N", type=count, help=f"most tokens of one forward (default: {DEFAULT_BATCH})"
    )
    parser.add_argument("-t", "--threads", metavar="N", type=count, help="CPU threads (default: physical cores)")
    add_cache_options(parser)
    parser.add_argument("--activation", metavar="NAME", help="activation function, over what the file implies")
    parser.add_argument(
        "--merge", metavar="DIR", nargs="+", help="instead of running a model, add up the statistics of these folders"
    )
    parser.add_argument("--same-text", action="store_true", help="--merge: let a text count as often as it was run")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace other statistics in the folder, once the new ones are complete",
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the curves and figures, as .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if (complaint := _misuse(arguments)) is not None:
        parser.error(complaint)
    # torch takes a second to import, which a usage error need not wait for.
    from powerinfer_py.cli.profile.execution import execute

    return execute(arguments)


def _misuse(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the combination of flags."""
    if arguments.merge is None:
        if arguments.model is None:
            return "name a model with -m, or folders with --merge"
        return "--same-text belongs to --merge" if arguments.same_text else None
    if arguments.output is None:
        return "--merge needs the folder to write, -o DIR"
    running = ("model", "file", "recipe", *RECIPE_OPTIONS, "threads", "activation")
    given = next((name for name in running if getattr(arguments, name) is not None), None)
    return None if given is None else f"--merge runs no model: --{given.replace('_', '-')} has no meaning with it"
