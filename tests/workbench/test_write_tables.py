"""tools/write_tables.py: the READMEs are what results and recipes make of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers_scripts import ROOT, script

from powerinfer_py.errors import FileFormatError, PowerInferError

TABLES = script("tools/write_tables.py")


def perplexity(log_ratio: float) -> dict[str, Any]:
    compared = {
        "perplexity": {"value": 30.0, "error": 0.5},
        "log_perplexity_ratio": {"value": log_ratio, "error": 0.001},
    }
    return {"compared": compared}


def methods() -> dict[str, Any]:
    total = {"recall": 0.99, "precision": 0.5, "predicted_share": 0.2, "fired_share": 0.1, "bytes": 2048}
    return {
        "script": "compare_methods",
        "model": "m.gguf",
        "texts": {"a.txt": "00", "b.txt": "11"},
        "text_tokens": 1000,
        "held_out": {"c.txt": "22"},
        "held_out_tokens": 500,
        "target_recall": 0.99,
        "made_before": {"trained": 0.995},
        "totals": {"trained": total, "sign_bits": total | {"recall": 0.9}},
        "decode_tokens_per_s": {"trained": 812.3, "sign_bits": None, "exact": 700.0},
        "perplexity": {"trained": perplexity(math.log(1.5)), "exact": perplexity(0.0)},
    }


def corpora() -> dict[str, Any]:
    row = {"neurons": 8, "hot": 3, "overlap": 0.75, "captured": 0.79, "best": 0.8, "rank_correlation": 0.98765}
    layers = [row | {"layer": 0}, row | {"layer": 1, "overlap": None, "rank_correlation": None}]
    sides = {"a": {"name": "one", "tokens": 100}, "b": {"name": "two"}}
    return {"script": "compare_corpora", "share": 0.8, "layers": layers, "overall": row | {"layer": None}, **sides}


def test_the_readmes_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert TABLES.main(["--check"]) == 0
    assert json.loads(capsys.readouterr().out) == {"changed": []}


@pytest.mark.parametrize("folder", ["predictors", "profiling"])
def test_every_family_says_what_was_seen(folder: str) -> None:
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / folder / "recipes").iterdir():
        (row,) = (line for line in readme.splitlines() if f"(recipes/{path.name})" in line)
        assert "not run" in row or path.stem == "demo"


def test_tables(tmp_path: Path) -> None:
    assert TABLES.result_tables(tmp_path) == "No results yet.\n"
    (tmp_path / "b.json").write_text(json.dumps(methods()))
    (tmp_path / "a.json").write_text(json.dumps(corpora()))
    text = TABLES.result_tables(tmp_path)
    assert text.index("### a: hot set of one (100 tokens) at 80%, held against two (unknown tokens)") == 0
    assert "| 0 | 3 of 8 | 75.0% | 79.0% | 80.0% | 0.988 |" in text
    assert "| 1 | 3 of 8 | - | 79.0% | 80.0% | - |" in text
    assert "### b: m.gguf, made from 1000 tokens of a.txt, b.txt, measured on 500 tokens of c.txt" in text
    assert "| trained | 99.00% | 50.00% | 20.00% | 2.00 | 2 | +50.000% +- 0.150% | 812 |" in text
    assert "| sign_bits | 90.00% | 50.00% | 20.00% | 2.00 | 2 | - | - |" in text
    assert "Calibrated to a recall of 99.0%; trained was made before, calibrated to 99.5%. Of all" in text
    assert "10.00% fire. Decode without predictors: exact 700 tokens/s. Perplexity: dense 30.00 +- 0.50" in text
    for line in text.splitlines():
        assert not line.startswith("|---") or set(line) == {"|", "-"}


@pytest.mark.parametrize("content", ["{}", '{"script": "other"}', '{"script": "compare_methods"}'])
def test_results_of_something_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(FileFormatError, match="compare_methods"):
        TABLES.result_tables(tmp_path)


def test_a_readme_without_marks() -> None:
    assert TABLES.with_block("a\n<!-- x -->\nold<!-- end of x -->\nb", "x", "new\n") == (
        "a\n<!-- x -->\nnew\n<!-- end of x -->\nb"
    )
    with pytest.raises(PowerInferError, match="no marks for its x"):
        TABLES.with_block("nothing", "x", "new")
