"""Draws the picture of the idea, docs/idea.svg: one FFN, its hot neurons on the GPU, its cold ones on the CPU.

    python tools/draw_idea.py docs/idea.svg

The picture explains and measures nothing: which neurons are active in it comes from a seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from random import Random

WIDTH, HEIGHT = 760, 300
COLUMNS, CELL = 8, 15
HOT_ROWS, COLD_ROWS = 4, 8
HOT_CHANCE, COLD_CHANCE = 0.7, 0.08
HOT, COLD, IDLE, INK, PAPER = "#d9480f", "#1864ab", "#dee2e6", "#343a40", "#ffffff"


def text(x: float, y: float, words: str, *, size: int = 13, anchor: str = "middle", bold: bool = False) -> str:
    """A line of text."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}"{weight} fill="{INK}">{words}</text>'


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """An empty frame."""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="none" stroke="{colour}" '
        'stroke-width="2"/>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A line with a head."""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>'


def neurons(x: float, y: float, rows: int, chance: float, colour: str, random: Random) -> list[str]:
    """A grid of neurons, a random share of them active."""
    return [
        f'<rect x="{x + CELL * column}" y="{y + CELL * row}" width="{CELL - 3}" height="{CELL - 3}" '
        f'fill="{colour if random.random() < chance else IDLE}"/>'
        for row in range(rows)
        for column in range(COLUMNS)
    ]


def picture() -> str:
    """The whole file."""
    random = Random(3)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">',
        "<title>A predictor names the neurons of a token; hot ones lie on the GPU, cold ones on the CPU</title>",
        f'<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
        box(15, 110, 100, 60, INK),
        text(65, 136, "token,"),
        text(65, 154, "after attention"),
        box(165, 110, 110, 60, INK),
        text(220, 136, "predictor", bold=True),
        text(220, 154, "who will fire?"),
        arrow(115, 140, 163, 140),
        box(340, 20, 290, 90, HOT),
        *neurons(355, 36, HOT_ROWS, HOT_CHANCE, HOT, random),
        text(490, 52, "GPU", size=16, anchor="start", bold=True),
        text(490, 72, "few hot neurons,", anchor="start"),
        text(490, 89, "most of the firing", anchor="start"),
        box(340, 130, 290, 150, COLD),
        *neurons(355, 145, COLD_ROWS, COLD_CHANCE, COLD, random),
        text(490, 165, "CPU", size=16, anchor="start", bold=True),
        text(490, 185, "many cold neurons,", anchor="start"),
        text(490, 202, "little of the firing", anchor="start"),
        text(490, 232, "grey rows are", anchor="start"),
        text(490, 249, "never read", anchor="start"),
        arrow(275, 130, 337, 70),
        arrow(275, 150, 337, 205),
        box(680, 110, 65, 60, INK),
        text(712, 145, "sum", bold=True),
        arrow(630, 70, 682, 112),
        arrow(630, 205, 682, 168),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="an .svg file")
    parser.parse_args(argv).output.write_text(picture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
