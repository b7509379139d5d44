"""Documents as their tests read them: fenced blocks with what their info strings say, and lines that call a command.

The first word of an info string is the language, the others say what a test does with the block:

- `sh` is run line by line in a folder that has the checkout's other folders but the package;
- `python` is run too, all blocks of a document in one namespace; `python interpreter` in a process of its own, in which
  Triton interprets its kernels;
- `text output` is what the block before it must print on standard output;
- `smollm2` (needs the package of that model, which `make` installs): run where it is installed, by a test of its own;
- `no-run` (needs a download, hours, a GPU or a machine's own paths): commands are parsed, Python is compiled.

Any other language, and blocks that are indented, are looked at for flags only.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[pt]*/README.md")]
    if path.name != "CHANGELOG.md"
)
_FENCE = re.compile(r"^```(\S.*)?$")
_PROMPT = re.compile(r"^(?:\$ )?((?:\S*/)?powerinfer(?:-[a-z-]+)?)(?: |$)")


@dataclass(frozen=True)
class Block:
    """A fenced block: the document, the line of its first line of text, the words of its info string, and its text."""

    document: Path
    line: int
    words: tuple[str, ...]
    text: str

    @property
    def language(self) -> str:
        return self.words[0] if self.words else ""

    @property
    def is_run(self) -> bool:
        return self.language in ("sh", "python") and not {"no-run", "smollm2"} & set(self.words)

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def read(document: Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: Path) -> list[Block]:
    result, words, text, start = [], None, [], 0
    for number, line in enumerate(read(document).splitlines(), 1):
        fence = _FENCE.match(line)
        if words is None and fence:
            words, text, start = tuple((fence[1] or "").split()), [], number + 1
        elif words is not None and fence and not fence[1]:
            result.append(Block(document, start, words, "\n".join(text) + "\n"))
            words = None
        elif words is not None:
            text.append(line)
    assert words is None, f"{document}: a block does not end"
    return result


def shell_lines(text: str) -> Iterator[str]:
    """Commands, lines that end in a backslash joined, without comments and empty lines."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line


def arguments(line: str) -> list[str]:
    """Words of a command, a comment at its end left out."""
    return shlex.split(line, comments=True)


def called_commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """(name of the command, its arguments) of every line of code, fenced or indented, that begins with one of ours."""
    lines = [line for block in blocks(document) for line in shell_lines(block.text)]
    lines += re.findall(r"^(?: {4}|\t)(\S.*(?:\\\n.*)*)$", read(document), re.MULTILINE)
    for line in lines:
        for part in line.replace("\\\n", " ").split("|"):
            if _PROMPT.match(part.strip()):
                try:
                    name, *rest = arguments(part.strip().removeprefix("$ "))
                except ValueError:  # an apostrophe in the output of a command
                    continue
                name = Path(name).name
                if name == "powerinfer" and rest:
                    name, rest = f"powerinfer-{rest[0]}", rest[1:]
                yield name, rest
