"""`powerinfer-train-predictors`: makes the predictors of which neurons of a model will fire, from a text.

A parser over `predictor.making.make_predictors`; figures are printed in `table.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerinfer_py.cli.command import command_parser, run_command, version_line
from powerinfer_py.cli.predictor_size import rank, share

if TYPE_CHECKING:
    from powerinfer_py.predictor.making import Job

PROG = "powerinfer-train-predictors"
# What a recipe may set.
RECIPE_OPTIONS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "rank": (int, str),
    "budget": (float, int),
    "target_recall": (float, int),
    "tokens": (int,),
    "window": (int,),
    "epochs": (int,),
    "learning_rate": (float, int),
    "batch": (int,),
    "seed": (int,),
}
_EXAMPLES = """\
examples:
  powerinfer-train-predictors -m model.gguf -f text.txt -o predictor/
        train, ranks chosen so that all predictors take a tenth of the model's bytes
  powerinfer-train-predictors -m model.gguf -f a.txt b.txt -o predictor/ --recipe predictors/recipes/relu_llama.toml
        with a model family's settings; options given here go before the recipe's
  powerinfer-train-predictors -m model.gguf -f text.txt -o predictor/ --method svd --rank 256
        no training: a truncated SVD of the gate, calibrated on the text
  powerinfer-train-predictors -m model.gguf -f text.txt -o part-1/ --layers 0-15
  powerinfer-train-predictors --merge part-1/ part-2/ -o predictor/
        layers made on several machines become one folder
  powerinfer-convert model.gguf predictor/ --outfile model.powerinfer.gguf
        put them into a model file

Stopped at any moment, the same command goes on where it was. Which tokens train, stop the training and calibrate is
decided by windows: of every ten, eight, one and one; with --calibrate all of -f trains, and its windows do the rest in
turn. A model fires otherwise on text that it learned by heart, so calibrate it on text it has not seen.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = command_parser(
        PROG,
        "Make low-rank predictors of which FFN neurons fire, for a model of the ReLU kind: model_{i}.pt, "
        "config.json and predictors.safetensors.",
        _EXAMPLES,
    )
    files = parser.add_argument_group("files")
    files.add_argument("-m", "--model", type=Path, help="GGUF or PowerInfer file; F16 gives the best")
    files.add_argument("-f", "--file", type=Path, nargs="+", metavar="TEXT", help="UTF-8 text files")
    files.add_argument(
        "--calibrate",
        type=Path,
        nargs="+",
        metavar="TEXT",
        help="text files to stop and to calibrate on, unseen by the model if possible (default: parts of -f)",
    )
    files.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to fill")
    files.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="instead of making predictors, put folders with some layers each together",
    )
    files.add_argument("--recipe", type=Path, metavar="TOML", help="file with defaults for the options below")
    _add_settings(parser.add_argument_group("settings"))
    machine = parser.add_argument_group("machine")
    machine.add_argument("--layers", type=_layers, metavar="A-B", help="make these layers only (default: all)")
    machine.add_argument("--max-disk", type=float, metavar="GIB", help="disk for collected tokens (default 20)")
    machine.add_argument("--device", choices=("cpu", "cuda"), help="where to train (default cpu)")
    machine.add_argument("-t", "--threads", type=int, help="CPU threads (default: one a physical core)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--version", action="version", version=version_line(PROG))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; argparse leaves through SystemExit for usage errors and --help."""
    return run_command(PROG, lambda: _run(argv))


def job_from(arguments: argparse.Namespace) -> Job:
    """What the command line asks for. Raises OptionError for values out of range and for recipes that are none."""
    from powerinfer_py.cli.recipe import read_recipe
    from powerinfer_py.errors import OptionError, printable
    from powerinfer_py.predictor.making import GIB, Job
    from powerinfer_py.predictor.training import TrainingOptions

    recipe = {} if arguments.recipe is None else read_recipe(arguments.recipe, RECIPE_OPTIONS)
    given: dict[str, Any] = {name: getattr(arguments, name) for name in RECIPE_OPTIONS}
    values = recipe | {name: value for name, value in given.items() if value is not None}
    rank_value = values.get("rank")
    if isinstance(rank_value, str) and rank_value != "auto":
        raise OptionError(f"the recipe's rank is '{printable(rank_value)}', expected \"auto\" or a number")
    if rank_value == "auto":
        values["rank"] = None
    training = {name: values.pop(name) for name in TrainingOptions.__dataclass_fields__ if name in values}
    if arguments.max_disk is not None:
        if not 0 < arguments.max_disk < 1e6:
            raise OptionError(f"--max-disk is {arguments.max_disk}, expected a number of GiB above 0")
        values["max_disk_bytes"] = int(arguments.max_disk * GIB)
    return Job(
        model=arguments.model,
        texts=tuple(arguments.file),
        output=arguments.output,
        calibration_texts=tuple(arguments.calibrate or ()),
        layers=arguments.layers,
        device=arguments.device or "cpu",
        threads=arguments.threads,
        training=TrainingOptions(**training),
        **values,
    )


def _add_settings(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--method", choices=("trained", "svd"), help="default trained; svd needs no training")
    group.add_argument("--rank", type=rank, metavar="auto|N", help="hidden units of a layer (default auto: by need)")
    group.add_argument(
        "--budget", type=share, metavar="SHARE", help="of the model's bytes, all predictors together (default 10%%)"
    )
    group.add_argument("--target-recall", type=float, metavar="R", help="share of firing neurons named (default 0.99)")
    group.add_argument("--tokens", type=int, metavar="N", help="tokens of the text at most (default: all)")
    group.add_argument("--window", type=int, metavar="N", help="tokens run together (default: context, at most 512)")
    group.add_argument("--epochs", type=int, metavar="N", help="over the tokens at most (default 20)")
    group.add_argument("--learning-rate", type=float, metavar="X", help="Adam's (default 0.001)")
    group.add_argument("--batch", type=int, metavar="N", help="tokens a training step (default 256)")
    group.add_argument("-s", "--seed", type=int, help="of the order of tokens (default 0)")


def _layers(text: str) -> range:
    """`0-15`, both included, or a single number."""
    first, _, last = text.partition("-")
    last = last or first
    if not all(part.isascii() and part.isdigit() and len(part) < 6 for part in (first, last)) or int(last) < int(first):
        raise argparse.ArgumentTypeError(f"expected layers such as 0-15, not {text!r}")
    return range(int(first), int(last) + 1)


def _misuse(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the combination of flags."""
    running = ("model", "file", "calibrate", "recipe", "layers", "max_disk", "device", "threads", *RECIPE_OPTIONS)
    if arguments.merge is None:
        missing = [flag for flag, value in (("-m", arguments.model), ("-f", arguments.file)) if value is None]
        return f"{missing[0]} is missing; or name folders to --merge" if missing else None
    given = next((name for name in running if getattr(arguments, name) is not None), None)
    return None if given is None else f"--merge makes nothing: --{given.replace('_', '-')} has no meaning with it"


def _merge(arguments: argparse.Namespace) -> int:
    from powerinfer_py.cli.streams import remark
    from powerinfer_py.predictor.merging import merge_folders, merged_dict

    report = merged_dict(merge_folders(arguments.merge, arguments.output))
    if arguments.json:
        print(json.dumps(report, allow_nan=False))
    else:
        remark(f"{len(report['layers'])} layers, {report['bytes']} bytes of predictors")
    return 0


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if (complaint := _misuse(arguments)) is not None:
        parser.error(complaint)
    if arguments.merge is not None:
        return _merge(arguments)
    from powerinfer_py.cli.progress import step_progress
    from powerinfer_py.cli.streams import remark
    from powerinfer_py.predictor.making import make_predictors

    job = job_from(arguments)
    if arguments.threads is not None:
        import torch

        torch.set_num_threads(arguments.threads)
    report = make_predictors(job, remark, step_progress)
    if arguments.json:
        print(json.dumps(report.to_dict(), allow_nan=False))
        return 0
    from powerinfer_py.cli.train_predictors.table import print_report

    print_report(report)
    return 0
