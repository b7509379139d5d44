"""Tables for a terminal, as all commands print them. Every cell passes through `printable` before it is shown."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from powerinfer_py.errors import printable

# Width of the tables where the output is no terminal.
_FILE_WIDTH = 120


class _QuietConsole(Console):
    """Leaves a reader that has gone to the command; rich itself would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console() -> Console:
    """A console on stdout, wide enough for tables where that is no terminal."""
    console = _QuietConsole(highlight=False)
    return console if console.is_terminal else _QuietConsole(highlight=False, width=_FILE_WIDTH)


def key_value_table(rows: Iterable[tuple[str, str]]) -> Table:
    """Two columns without a header."""
    return make_table(None, (("", "left"), ("", "left")), rows)


def size_text(n_bytes: int) -> str:
    """A number of bytes in the unit that suits it."""
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.1f} {unit}" if unit != "B" else f"{n_bytes} B"
        size /= 1024
    return f"{size:.2f} GiB"


def make_table(title: str | None, columns: Iterable[tuple[str, str]], rows: Iterable[tuple[str, ...]]) -> Table:
    """Rows under columns of (name, "left" or "right"); every cell goes through `printable`."""
    columns = tuple(columns)
    table = Table(title=title, title_justify="left", box=None, show_header=any(name for name, _ in columns))
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        # Text, not str: a bracket in a file's string is no markup.
        table.add_row(*(Text(printable(cell, 200)) for cell in row))
    return table
