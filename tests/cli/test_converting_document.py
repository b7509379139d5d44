"""`docs/converting.md` against the commands: the table of types, and every option that it names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from powerinfer_py.cli import convert, inspect, metadata, quantize, train_predictors
from powerinfer_py.convert.row_types import type_for_rows
from powerinfer_py.gguf import BLOCK_LAYOUTS, GGMLType, dequantize
from powerinfer_py.gguf.quantisation import quantize as to_blocks

TEXT = (Path(__file__).parents[2] / "docs" / "converting.md").read_text(encoding="utf-8")
TYPES = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.e-]+) \| (\d+) \| (\w*) *\|$", TEXT, re.MULTILINE)


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def test_every_type_has_its_row() -> None:
    assert sorted(row[0] for row in TYPES) == sorted(quantize._TYPE_NAMES)


@pytest.mark.parametrize(("name", "bits", "nmse", "multiple", "other"), TYPES)
def test_a_row_of_the_table(name: str, bits: str, nmse: str, multiple: str, other: str) -> None:
    ggml_type = GGMLType[name]
    layout = BLOCK_LAYOUTS[ggml_type]
    assert layout.n_bytes * 8 / layout.n_weights == float(bits)
    assert layout.n_weights == int(multiple)
    # A multiple of 32 where blocks of 256 do not fit, a multiple of nothing where those of 32 do not.
    rows_of = {1: 1, 32: 33, 256: 32}[layout.n_weights]
    assert type_for_rows(ggml_type, rows_of).name == (other or name)
    values = np.random.default_rng(0).standard_normal((64, 4096), dtype=np.float32)
    error = dequantize(to_blocks(values, ggml_type), ggml_type, *values.shape) - values
    assert float(np.square(error).sum() / np.square(values).sum()) == pytest.approx(float(nmse), rel=0.05)


def test_every_option_exists() -> None:
    commands = (convert, quantize, inspect, metadata, train_predictors)
    known = {o for c in commands for p in parsers(c.build_parser()) for a in p._actions for o in a.option_strings}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT))
    # Of powerinfer-run, mentioned beside what is never sampled.
    assert named - known == {"--logit-bias"}
