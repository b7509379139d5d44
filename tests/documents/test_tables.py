"""Tables of the documents are those of the result files, and every link within the checkout leads somewhere."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from helpers_documents import DOCUMENTS, ROOT, read

from powerinfer_py.errors import PowerInferError


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("write_performance")


def test_tables_of_speeds_are_those_of_the_results(writer: ModuleType) -> None:
    for document in writer.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert writer.BLOCK.search(text), document
        assert writer.with_tables(text) == text, f"{document}: run tools/write_performance.py"


def test_a_changed_result_changes_its_tables(writer: ModuleType, tmp_path: Path) -> None:
    name = "relullama-7b-8-layers-q4_0.json"
    result = json.loads((writer.RESULTS / name).read_text())
    result["summary"]["ours predictor"]["decode_tokens_per_s"]["median"] = 123.4
    result["ratios"][0]["max"] = 98.765
    (tmp_path / name).write_text(json.dumps(result))
    text = f"a\n<!-- speeds A+b={name} -->\nold\n<!-- end -->\nz\n<!-- ratios B={name} -->\n<!-- end -->\n"
    made = writer.with_tables(text, tmp_path)
    assert "| A b | this package, `predictor` | 123 | " in made
    assert "to 98.77)" in made
    assert "old" not in made
    assert made.startswith("a\n")
    assert "\nz\n" in made
    assert writer.with_tables(made, tmp_path) == made
    (tmp_path / name).write_text('{"summary": {}}')
    with pytest.raises(PowerInferError, match="expected what the tool of `ratios` writes"):
        writer.with_tables(text, tmp_path)


def test_sentences_follow_their_results(writer: ModuleType, tmp_path: Path) -> None:
    parts = [
        {"part": "FFN block", "native_ms": 7.0, "python_ms": 0.3},
        {"part": "head", "native_ms": 2.0, "python_ms": 0.5},
        {"part": "sampling", "native_ms": 0.0, "python_ms": 0.4},
    ]
    files = {
        "step": {"runs": {"as it runs": {"ms_per_token": 10.14, "parts": parts}}},
        "cost": {"line": {"r_squared": 0.98765}, "all_rows_against_dense": 1.234},
        "turns": {"rounds": 9, "tokens": 7, "bench_against_run": {"median": 1.0014, "min": 0.9, "max": 1.1}},
        "caches": {
            "rows": [
                {
                    "depth": 2000,
                    "type": "q8_0",
                    "tokens_per_s": {"median": 9, "min": 8, "max": 10},
                    "cache_bytes": 25.7e6,
                }
            ]
        },
        "reading": {
            "rows": [
                {"type": "F16", "threads": 2, "share": share, "gb_per_s": {"median": 20 + share}}
                for share in (0.1, 1.0)
            ],
            "bare_reads": [{"threads": 2, "gb_per_s": {"median": 30}}],
        },
        "solver": {
            "rows": [
                {"mode": "exact", "frequencies": "by depth", "given": True, "seconds": [0.5, 0.123], "gap": 0.0001},
                {"mode": "exact", "frequencies": "by depth", "given": True, "seconds": [0.25], "gap": 0.00042},
            ]
        },
        "captured": {"captured": {"PowerInfer": 0.25, "generate_gpuidx": 0.5, "frequency": 0.75, "most": 0.8}},
    }
    text = ""
    for kind, result in files.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(result))
        text += f"<!-- {kind} A+b={kind}.json -->\n<!-- end -->\n"
    made = writer.with_tables(text, tmp_path)
    for line in (
        "Of 10.1 ms, 9.0 are native code; Python takes 0.8 ms around and between the calls, sampling 0.4.",
        "A straight line fits with an R² of 0.9877, and all rows through a mask take 1.23 times the dense time.",
        "| A b | 9 | 7 | 1.001 (0.900 to 1.100) |",
        "| A b | 2,000 | `q8_0` | 9.00 | 8.00 to 10.0 | 25.7 |",
        "| weights | threads | 10% | all rows | bare read |",
        "| F16 | 2 | 20.1 | 21.0 | 30.0 |",
        "| `exact` | by depth | given | 0.12 to 0.50 | 0.042% |",
    ):
        assert f"\n{line}\n" in made
    assert "captures 25.0% of the activations, this one 50.0%, and" in " ".join(made.split())
    assert "75.0%, of 80.0% that so many neurons could." in " ".join(made.split())


def test_every_mark_of_a_document_is_one_that_is_rewritten(writer: ModuleType) -> None:
    for document in writer.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert (
            len(re.findall(r"<!-- .*\.json -->", text)) == len(writer.BLOCK.findall(text)) == text.count("<!-- end -->")
        )


def test_check_writes_nothing(writer: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "d.md"
    stale = "<!-- speeds Q=smollm2-135m-q4_1.json -->\nold\n<!-- end -->\n"
    document.write_text(stale)
    assert writer.main(["--check", str(document)]) == 1
    assert "its tables are not those" in capsys.readouterr().err
    assert document.read_text() == stale
    assert writer.main([str(document)]) == 0
    assert writer.main(["--check", str(document)]) == 0
    assert "| Q | this package" in document.read_text()


def test_results_hold_their_samples_and_where_they_come_from() -> None:
    for path in (ROOT / "docs/results").glob("*.json"):
        result = json.loads(path.read_text())
        if "samples" not in result:
            continue
        assert {"machine", "commit", "command"} <= set(result), path.name
        assert all(rows for rows in result["samples"].values())


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", read(document)):
        if "://" not in target:
            assert (ROOT / document.parent / target).exists(), f"{document}: {target}"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_files_that_are_named_exist(document: str) -> None:
    """Relative to the checkout, to the package, to its native code, or with the folder named just before."""
    named = re.findall(r"`([\w./]+/[\w./]*\w\.(?:py|pyi|cpp|hpp|md))`", read(Path(document)))
    assert len(named) > 10
    bases = ("", "powerinfer_py", "powerinfer_py/csrc", "powerinfer_py/convert", "powerinfer_py/kernels")
    for name in named:
        assert any((ROOT / base / name).exists() for base in bases), f"{document}: {name}"
