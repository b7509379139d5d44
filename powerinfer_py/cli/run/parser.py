"""The argument parser of `powerinfer-run`, built from the tables in flags.py and refused.py.

Unlike plain argparse: a usage error is one line, exit code 2; a value may begin with a dash, as in `-p "- eggs"`; and
underscores in long names mean dashes. Both latter as in PowerInfer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from powerinfer_py.cli.command import version_line
from powerinfer_py.cli.run import PROG
from powerinfer_py.cli.run.flags import FLAGS, GROUPS, Flag
from powerinfer_py.cli.run.refused import refusal
from powerinfer_py.cli.values import unicode_text
from powerinfer_py.errors import printable

DESCRIPTION = "Generates text with a PowerInfer (PWRI) or llama.cpp (GGUF) model file."
EPILOG = """examples:
  powerinfer-run -m model.powerinfer.gguf -p "Once upon a time" -n 64
  powerinfer-run -m model.gguf -i --system "You answer in one sentence."
  powerinfer-run "The capital of France is" -n 8 --temp 0
  cat letter.txt | powerinfer-run -m model.gguf -f - --json
  powerinfer-run -m model.gguf -p "A name for a boat:" --parallel 4 -n 12

Generated text goes to standard output, everything else to standard error. Ctrl-C stops the text and prints the
timings, twice leaves when the native call at work returns. Exit codes: 0 done, 1 error, 2 wrong usage,
130 interrupted, 141 the reader of standard output has gone, 143 terminated."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a usage error as one line; the usage itself is what --help is for."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2."""
        self.exit(2, f"{self.prog}: error: {printable(message, 400)} (see {self.prog} --help)\n")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed flags, an attribute per `Flag.key`, and `prompt` with the positional prompt, if any, at its end."""
    parser = build_parser()
    args = parser.parse_args(_normalise(parser, sys.argv[1:] if argv is None else argv))
    if args.positional is not None:
        args.prompt = [*(args.prompt or []), args.positional]
    return args


def build_parser() -> OneLineParser:
    """The parser without the preparation of arguments that `parse` makes."""
    parser = OneLineParser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version_line(PROG))
    parser.add_argument(
        "positional", nargs="?", metavar="PROMPT", type=unicode_text, help="the same as --prompt PROMPT"
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    return parser


def _add(group: argparse._ArgumentGroup, flag: Flag) -> None:
    text = flag.help.replace("%", "%%")
    if flag.metavar is None:
        group.add_argument(*flag.names, dest=flag.key, action="store_true", help=text)
        return
    if flag.choices is not None:
        text += f": {', '.join(flag.choices)}"
    group.add_argument(
        *flag.names,
        dest=flag.key,
        action="append" if flag.repeatable else "store",
        metavar=flag.metavar,
        type=flag.read,
        default=flag.default,
        choices=flag.choices,
        help=f"{text} (default: {flag.default_text})",
    )


def _normalise(parser: OneLineParser, argv: Sequence[str]) -> list[str]:
    """`--long=value` for every flag with a value, so that argparse cannot take the value for a flag.

    Ends with a usage error at a refused flag, and where a flag stands in a value's place.
    """
    known = {name: flag for flag in FLAGS for name in flag.names}
    result: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument == "--":
            return [*result, argument, *rest]
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        if (reason := refusal(name)) is not None:
            parser.error(f"{name} is not supported: {reason}")
        flag = known.get(name)
        if flag is None:
            result.append(argument)
        elif equals or flag.metavar is None:
            result.append(_checked(parser, flag, f"{flag.long_name}{equals}{value}"))
        else:
            result.append(_joined(parser, flag, next(rest, None), known))
    return result


def _joined(parser: OneLineParser, flag: Flag, value: str | None, known: dict[str, Flag]) -> str:
    names = "/".join(flag.names)
    if value is None:
        parser.error(f"argument {names}: expected a value")
    if value in known:
        parser.error(
            f"argument {names}: expected a value before {value}; write {flag.long_name}={value} to mean that text"
        )
    return _checked(parser, flag, f"{flag.long_name}={value}")


def _checked(parser: OneLineParser, flag: Flag, joined: str) -> str:
    if joined == f"{flag.long_name}=--":
        parser.error(f"argument {'/'.join(flag.names)}: the value cannot be -- alone")  # argparse would drop it
    return joined
