"""`powerinfer-bench`: a row a combination, in three formats, and one JSON object at the end."""

from __future__ import annotations

import csv
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_logits import FIXTURES

from powerinfer_py import LLM
from powerinfer_py.cli.bench import build_parser, execution, main
from powerinfer_py.cli.bench.combinations import combinations, wanted_tests
from powerinfer_py.cli.bench.rows import markdown_row

MODEL = str(FIXTURES / "relu-llama.q4.powerinfer.gguf")
DENSE = str(FIXTURES / "llama_cpp" / "llama.gguf")
SHORT = ("-r", "2", "-t", "1", "--probe-mib", "1")


def run(
    capsys: pytest.CaptureFixture[str], *arguments: str, prompt: str = "6", decode: str = "3", model: str = MODEL
) -> tuple[list[str], dict[str, Any]]:
    """Lines before the last one, and the last one as JSON."""
    assert main(["-m", model, *SHORT, "-p", prompt, "-n", decode, *arguments]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    return lines, json.loads(last)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_a_row_a_combination_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    lines, result = run(capsys, "--sparsity", "predictor,exact", "--depth", "0,5")
    head, rule, *rows = map(cells, lines)
    assert head[:4] == ["model", "size", "sparsity", "threads"]
    assert len(rule) == len(head)
    assert [(row[2], row[5]) for row in rows] == [
        (mode, test) for mode in ("predictor", "exact") for test in ("pp6", "tg3", "pp6 @ d5", "tg3 @ d5")
    ]
    for row, figures in zip(rows, result["rows"], strict=True):
        shown = dict(zip(head, row, strict=True))
        assert shown["tokens/s"] == f"{figures['tokens_per_s']['median']:.2f}"
        assert shown["neurons"] == f"{figures['share_computed']:.1%}"
        assert shown["GPU / CPU"] == "0% / 100%"
        assert shown["GPU peak"] == "0"


def test_the_json_object_holds_what_a_result_file_needs(capsys: pytest.CaptureFixture[str]) -> None:
    lines, result = run(capsys, "--json")
    assert not lines
    assert {"benchmark", "version", "date", "command", "machine", "rows"} == set(result)
    assert result["command"][1:3] == ["-m", MODEL]
    assert result["machine"]["processor"]["model"]
    assert result["machine"]["devices"] == [] or result["machine"]["devices"][0]["name"]
    prompt, decode = result["rows"]
    for row, tokens in ((prompt, 6), (decode, 3)):
        assert len(row["seconds"]) == 2
        assert row["tokens_per_s"]["max"] == tokens / min(row["seconds"])
        assert row["read_bandwidth_gb_per_s"] == max(row["read_bandwidth_passes"])
        assert row["share_of_bandwidth"] == row["gb_per_s"] / row["read_bandwidth_gb_per_s"]
        assert row["host_peak_bytes"] is None or row["host_peak_bytes"] > 1 << 20
    assert (prompt["phase"], decode["phase"]) == ("pp", "tg")
    assert decode["sparsity"] == "predictor"
    assert 0 < decode["share_computed"] < 1


def test_csv_has_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    lines, result = run(capsys, "-o", "csv", prompt="0", decode="2,3", model=DENSE)
    rows = list(csv.DictReader(lines))
    assert [row["test"] for row in rows] == ["tg2", "tg3"]
    for row, figures in zip(rows, result["rows"], strict=True):
        assert float(row["tokens_per_s.median"]) == figures["tokens_per_s"]["median"]
        assert [float(value) for value in row["seconds"].split()] == figures["seconds"]
        assert row["sparsity"] == "dense"
        assert row["vram_budget"] == ""


def test_a_budget_without_a_device_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = ["-m", MODEL, *SHORT, "-p", "0", "-n", "1", "--vram-budget", "0,4,8"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err.count("no CUDA device") == 1
    result = json.loads(captured.out.splitlines()[-1])
    assert [(row["vram_budget"], row["gpu_share"]) for row in result["rows"]] == [(0.0, 0.0), (4.0, 0.0), (8.0, 0.0)]


def parsed(*arguments: str) -> Any:
    return build_parser().parse_args(["-m", MODEL, *arguments])


def test_options_are_combined_each_with_each() -> None:
    found = combinations(parsed("-t", "1,2", "-t", "4", "--vram-budget", "0,8", "-ctk", "f16,q8_0"), 3)
    assert [(c.vram_budget, c.threads, c.cache_type_k) for c in found] == [
        (budget, threads, kind) for budget in (0.0, 8.0) for threads in (1, 2, 4) for kind in ("f16", "q8_0")
    ]
    assert {c.sparsity for c in found} == {"predictor"}
    assert combinations(parsed(), 3)[0].threads == 3


def test_defaults_are_llama_benchs() -> None:
    assert [test.name for test in wanted_tests(parsed())] == ["pp512", "tg128"]
    assert parsed().repetitions == 5
    assert [test.name for test in wanted_tests(parsed("-p", "0", "-n", "16", "-d", "8"))] == ["tg16 @ d8"]


def test_what_is_unusual_about_a_row_stands_beside_the_threads(capsys: pytest.CaptureFixture[str]) -> None:
    _, result = run(capsys, "-o", "json", decode="0")
    row = {**result["rows"][0], "batch_size": 64, "cache_type_v": "q8_0", "vram_budget": -1.0, "model": "a|\x1bb.gguf"}
    shown = cells(markdown_row(row).replace(r"\|", "/"))
    assert shown[0] == r"a/\x1bb.gguf"
    assert shown[3:5] == ["1 (-b 64, -ctv q8_0)", "all"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-t", "1,x"), "expected a whole number"),
        (("--sparsity", "exact,fast"), "expected one of"),
        (("--vram-budget", "0,-2"), "must be -1"),
        (("-r", "0"), "must be 1 or more"),
    ],
)
def test_wrong_usage(arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["-m", MODEL, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_mode_that_cannot_run_is_refused_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", MODEL, "-m", DENSE, *SHORT, "--sparsity", "dense,predictor"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and "needs a ReLU-type activation" in captured.err


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", str(tmp_path / "none.gguf"), *SHORT]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can only be set back through /proc")
def test_the_peak_of_a_row_is_of_its_own_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model before it is gone by then, and the probe's buffer is no part of it."""
    alive: list[weakref.ref[LLM]] = []
    forget = execution.forget_peaks

    def forget_peaks() -> bool:
        assert [llm() for llm in alive] == [None] * len(alive)
        return forget()

    def load(*arguments: Any, **options: Any) -> LLM:
        llm = LLM(*arguments, **options)
        alive.append(weakref.ref(llm))
        return llm

    monkeypatch.setattr(execution, "forget_peaks", forget_peaks)
    monkeypatch.setattr(execution, "LLM", load)
    _, result = run(capsys, "--json", "--sparsity", "exact,dense", "--probe-mib", "200")
    assert len(alive) == 2
    peaks = [row["host_peak_bytes"] for row in result["rows"]]
    assert max(peaks) - min(peaks) < 100 << 20
