"""Where the prompts of `powerinfer-run` come from: -p, the positional one, -f, --prompts-file. Text in, tokens out.

Order: -p (the positional prompt last), then -f, then the lines of --prompts-file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from powerinfer_py.cli.streams import remark
from powerinfer_py.cli.values import unescape
from powerinfer_py.errors import FileFormatError, OptionError, printable

if TYPE_CHECKING:
    from powerinfer_py.generation.llm import LLM

STANDARD_INPUT = "-"
# Ten million tokens, the longest context that any model claims, of six bytes each; a device such as /dev/zero never
# ends.
MAX_TEXT_BYTES = 64 << 20


def given_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts asked for, possibly none. Raises FileFormatError for a file that cannot be read as UTF-8."""
    prompts: list[str] = list(args.prompt or [])
    prompts += [read_text(path).removesuffix("\n").removesuffix("\r") for path in args.file or []]
    if args.prompts_file is not None:
        prompts += _prompt_lines(args.prompts_file)
    return [unescaped(prompt) for prompt in prompts] if args.escape else prompts


def read_text(path: str) -> str:
    """The text of a UTF-8 file without its byte-order mark; `-` is standard input.

    Raises FileFormatError for what cannot be read, is no UTF-8, or is longer than MAX_TEXT_BYTES.
    """
    name = _name(path)
    try:
        data = _first_bytes(path, MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise FileFormatError(f"holds more than {MAX_TEXT_BYTES >> 20} MiB, which no context does", path=name)
        # A byte-order mark says that the text is UTF-8 and is no part of it. Decoding as utf-8-sig would count the
        # offset of an error from behind it.
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise FileFormatError("is not UTF-8 text", path=name, offset=error.start) from None
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from None


def _first_bytes(path: str, most: int) -> bytes:
    if path == STANDARD_INPUT:
        return sys.stdin.buffer.read(most)
    with Path(path).open("rb") as file:
        return file.read(most)


def unreadable(name: str, error: OSError | ValueError) -> FileFormatError:
    """What to raise where a file or stream cannot be opened or read; ValueError is a path that no file can have."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return FileFormatError(f"cannot be read: {reason}", path=name)


def unescaped(text: str) -> str:
    """`unescape` with an OptionError where the result is not UTF-8."""
    try:
        return unescape(text)
    except ValueError:
        raise OptionError(rf"the \x escapes in {printable(text, 40)!r} do not form UTF-8 text") from None


def prompt_tokens(llm: LLM, text: str, args: argparse.Namespace) -> list[int]:
    """Token ids of a prompt, listed on stderr under --verbose-prompt.

    A prompt without tokens becomes the begin-of-text token; OptionError where the model has none.
    """
    ids = llm.tokenize(text, special=args.parse_special)
    if not ids:
        ids = begin_of_text(llm)
    if not ids:
        raise OptionError("the prompt is empty and the model has no begin-of-text token to start from")
    if args.verbose_prompt:
        remark(f"prompt: {len(ids)} tokens")
        for token in ids:
            remark(f"{token:8d}  {printable(llm.detokenize([token]))!r}")
    return ids


def begin_of_text(llm: LLM) -> list[int]:
    """The model's begin-of-text token as a list, empty where it has none."""
    bos = llm.tokenizer.bos_id
    return [] if bos is None else [bos]


def _prompt_lines(path: str) -> list[str]:
    """The lines that are not empty. Only a line feed ends a line: U+2028, form feed and their like are text."""
    lines = (line.removesuffix("\r") for line in read_text(path).split("\n"))
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise FileFormatError("holds no prompt", path=_name(path))
    return prompts


def _name(path: str) -> str:
    return "standard input" if path == STANDARD_INPUT else path
