"""The scripts of the workbench folders, run as a person with a checkout runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
from helpers_logits import FIXTURES

ROOT = Path(__file__).parent.parent.parent


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["relu-llama", "relu-falcon.q4"])
def test_measure_recall(name: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Hello, world! Once upon a time there was a model of random weights.\n" * 3)
    done = run("predictors/measure_recall.py", "-m", FIXTURES / f"{name}.powerinfer.gguf", "-f", text, "--tokens", 40)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["tokens"] == 40
    for layer in result["layers"]:
        assert 0 < layer["fired_share"] < 1
        # Random predictors name a random share of the neurons, and find that share of those that fire.
        assert layer["recall"] == pytest.approx(layer["predicted_share"], abs=0.15)


def test_measure_recall_without_predictors(tmp_path: Path) -> None:
    from helpers_models import write_opt

    text = tmp_path / "text.txt"
    text.write_text("Hello")
    done = run("predictors/measure_recall.py", "-m", write_opt(tmp_path / "o.gguf", predictors=False), "-f", text)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no predictors" in done.stderr


def test_plot_hot_neurons(tmp_path: Path) -> None:
    picture = tmp_path / "hot.png"
    done = run("profiling/plot_hot_neurons.py", FIXTURES / "relu-llama-activation", "-o", picture)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result["layers"]) == 12
    assert 0.05 < result["share_of_neurons"] < 0.5
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plot_hot_neurons_without_statistics(tmp_path: Path) -> None:
    done = run("profiling/plot_hot_neurons.py", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_plot_sparse_cost(tmp_path: Path) -> None:
    picture, figures = tmp_path / "cost.png", tmp_path / "cost.json"
    sizes = ("--n-ff", 512, "--n-embd", 256, "--layers", 2, "--repeats", 2)
    done = run("tools/plot_sparse_cost.py", *sizes, "--png", picture, "--json", figures)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(figures.read_text())
    assert len(result["median_s"]) == len(result["shares"]) and result["shares"][-1] == 1.0
    assert all(seconds > 0 for seconds in [*result["median_s"], result["median_dense_s"]])
    samples = result["samples"]
    assert [median(passes) for passes in samples["seconds"]] == result["median_s"]
    assert len(samples["dense_s"]) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_measure_solver(tmp_path: Path) -> None:
    figures = tmp_path / "solver.json"
    done = run("tools/measure_solver.py", "--layers", 3, "--neurons", 256, "--repeats", 2, "--json", figures)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(figures.read_text())
    kinds = {(row["mode"], row["frequencies"], row["given"]) for row in result["rows"]}
    assert {(mode, given) for mode, _, given in kinds} == {
        (mode, given) for mode in ("predictor", "exact", "dense") for given in (False, True)
    }
    for row in result["rows"]:
        assert len(row["seconds"]) == 2
        assert row["blocks"] == 3 or not row["given"]
        assert row["budget_used"] <= 1
    share = result["captured"]
    assert share["PowerInfer"] < share["generate_gpuidx"] <= share["frequency"] == pytest.approx(share["most"])


def test_measure_row_reading(tmp_path: Path) -> None:
    figures = tmp_path / "rows.json"
    sizes = ("--rows", 64, "--cols", 256, "--mib", 1, "--probe-mib", 1, "--repeats", 2, "--threads", 1, 2)
    done = run("tools/measure_row_reading.py", *sizes, "--json", figures)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(figures.read_text())
    assert [probe["threads"] for probe in result["bare_reads"]] == [1, 2]
    keys = [(row["threads"], row["type"], row["share"]) for row in result["rows"]]
    assert keys == [
        (threads, name, share)
        for threads in (1, 2)
        for name in ("Q4_0", "Q8_0", "Q6_K", "F16")
        for share in (0.05, 0.1, 0.3, 0.8, 1.0)
    ]
    for row in result["rows"]:
        assert len(row["seconds"]) == 2
        rates = [row["bytes"] / seconds / 1e9 for seconds in row["seconds"]]
        assert row["gb_per_s"] == {"median": pytest.approx(median(rates)), "min": min(rates), "max": max(rates)}
    # 1 MiB of matrices of 64 rows of 8 blocks of 18 bytes each; a twentieth of 64 rows are 3.
    assert result["rows"][0]["bytes"] == -(-(1 << 20) // (64 * 8 * 18)) * 3 * 8 * 18


def test_compare_cache_types(tmp_path: Path) -> None:
    # Heads of 64: blocks of the cache hold 32 values.
    figures, model = tmp_path / "caches.json", ROOT / "powerinfer_py/models_data/demo.powerinfer.gguf"
    options = ("--depths", 0, 40, "--n", 4, "--rounds", 3, "--threads", 1, "--json", figures)
    done = run("tools/compare_cache_types.py", model, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(figures.read_text())
    assert [(row["depth"], row["type"]) for row in result["rows"]] == [
        (depth, kind) for depth in (0, 40) for kind in ("f16", "q8_0")
    ]
    for row in result["rows"]:
        assert len(row["seconds"]) == 3
        assert row["tokens_per_s"]["median"] == pytest.approx(4 / median(row["seconds"]))
    f16, q8_0 = (row["cache_bytes"] for row in result["rows"][2:])
    # 32 values in 64 bytes against 34; at depth 40 there are 44 tokens by the end, at depth 0 there are 5.
    assert q8_0 / f16 == pytest.approx(34 / 64)
    assert f16 / result["rows"][0]["cache_bytes"] == pytest.approx(44 / 5)


def test_compare_bench_and_run(tmp_path: Path) -> None:
    figures, model = tmp_path / "turns.json", FIXTURES / "relu-llama.q4.powerinfer.gguf"
    options = ("--n", 8, "--rounds", 5, "--threads", 1, "--json", figures)
    done = run("tools/compare_bench_and_run.py", model, *options)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    result = json.loads(figures.read_text())
    bench, of_run = result["samples"]["bench"], result["samples"]["run"]
    assert len(bench) == len(of_run) == result["rounds"] == 5
    ratios = [a / b for a, b in zip(bench, of_run, strict=True)]
    assert result["bench_against_run"] == {"median": median(ratios), "min": min(ratios), "max": max(ratios)}
    # The same work within one process; another process may take the core in between.
    assert 0.2 < result["bench_against_run"]["median"] < 5


def test_plot_decode_step(tmp_path: Path) -> None:
    picture, figures = tmp_path / "step.png", tmp_path / "step.json"
    model = FIXTURES / "relu-llama.q4.powerinfer.gguf"
    done = run("tools/plot_decode_step.py", model, "--n", 4, "--threads", 1, "--png", picture, "--json", figures)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(figures.read_text())
    whole, apart = result["runs"]["as it runs"], result["runs"]["taken apart"]
    assert {"layers", "head", "embedding"} <= {part["part"] for part in whole["parts"]}
    assert {"q, k, v", "predictor", "gate rows", "up rows", "down rows"} <= {part["part"] for part in apart["parts"]}
    for name in ("as it runs", "taken apart"):
        parts = result["runs"][name]["parts"]
        assert len(result["runs"][name]["steps_s"]) == 4
        assert min(part[key] for part in parts for key in ("native_ms", "python_ms")) >= 0
        total = sum(part["native_ms"] + part["python_ms"] for part in parts)
        assert total == pytest.approx(result["runs"][name]["ms_per_token"])
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("profiling/plot_hot_neurons.py", ["missing"]),
        ("tools/plot_sparse_cost.py", []),
        ("tools/plot_decode_step.py", ["m"]),
    ],
)
@pytest.mark.parametrize("has_matplotlib", [True, False])
def test_pictures_that_cannot_be_are_one_line_before_the_work(
    script: str, arguments: list[str], has_matplotlib: bool, tmp_path: Path
) -> None:
    flag = "-o" if script.startswith("profiling") else "--png"
    argv = [str(ROOT / script), *arguments, flag, str(tmp_path / "missing" / "x.png")]
    absent = "" if has_matplotlib else "sys.modules['matplotlib'] = None;"
    program = f"import runpy, sys; {absent} sys.path.insert(0, {str((ROOT / script).parent)!r}); sys.argv = {argv!r};"
    command = [sys.executable, "-c", f"{program} runpy.run_path({argv[0]!r}, run_name='__main__')"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    reason = "cannot write: No such file or directory" if has_matplotlib else "pip install 'powerinfer-py[plot]'"
    assert done.stderr.startswith(Path(script).stem + ": ")
    assert reason in done.stderr


@pytest.mark.parametrize("sparsity", ["auto", "dense"])
def test_measure_start(sparsity: str, tmp_path: Path) -> None:
    figures, model = tmp_path / "start.json", FIXTURES / "relu-llama.q4.powerinfer.gguf"
    options = ("--threads", 1, "--repeats", 2, "--sparsity", sparsity, "--json", figures)
    done = run("tools/measure_start.py", model, *options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads(figures.read_text())
    assert result["file_bytes"] == model.stat().st_size
    assert len(result["starts"]) == 2
    for start in [*result["starts"], result["median"]]:
        assert min(start["imports_s"], start["load_s"], start["first_token_s"]) > 0
        # torch alone holds more than these.
        assert start["resident_bytes"] > start["anonymous_bytes"] > 10_000_000
    for start in result["starts"]:
        assert start["start_to_first_token_s"] == pytest.approx(start["load_s"] + start["first_token_s"])
        assert start["sparsity"] == ("predictor" if sparsity == "auto" else "dense")
    assert result["resident_against_file"] == result["median"]["resident_bytes"] / result["file_bytes"]


def test_measure_start_of_no_model(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    for model in (tmp_path / "none.gguf", broken):
        done = run("tools/measure_start.py", model, "--repeats", 1)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("measure_start.py: error: ")
