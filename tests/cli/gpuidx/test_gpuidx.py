"""powerinfer-gpuidx as a user calls it: budgets, methods, folders, reports, and its ways to fail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from powerinfer_py.cli.gpuidx import main
from powerinfer_py.gguf import open_gguf
from powerinfer_py.placement.budget import GIB
from powerinfer_py.placement.gpuidx import load_gpu_index
from powerinfer_py.profiler import plot

RATES = [
    "--gpu-bandwidth",
    "500",
    "--cpu-bandwidth",
    "20",
    "--sync-time",
    "0.1",
    "--layer-time",
    "0",
    "--gpu-context",
    "0",
]


@pytest.fixture
def model(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    shutil.copytree(fixtures / "relu-llama-activation", folder / "activation")
    return Path(shutil.copy(fixtures / "relu-llama.powerinfer.gguf", folder / "m.powerinfer.gguf"))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json", *RATES]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    result: dict[str, Any] = json.loads(output)
    return result


def test_finer_rates_are_used(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("-m", model, "--neurons", 0.375, "--dry-run")
    coarse = run_json(capsys, *asked)
    fine = run_json(capsys, *asked, "--gpu-rows-bandwidth", 400, "--cpu-rows-bandwidth", 5)
    assert fine["rates"]["gpu_rows_bytes_per_s"] == 4e11
    assert fine["rates"]["source"] == coarse["rates"]["source"] == "given"
    slower = run_json(capsys, *asked, "--rows-time", 50, "--change-time", 70)
    assert slower["rates"]["change_s"] == pytest.approx(7e-5)
    times = [result["estimate"]["seconds_a_token"] for result in (coarse, fine, slower)]
    assert times[0] < min(times[1:])


def test_three_eighths_of_the_neurons_capture_96_percent(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "-m", model, "--neurons", 0.375, "--method", "frequency")
    assert result["neurons_on_gpu"] == 12 * 1024 * 3 // 8
    assert result["captured"] >= 0.960
    index = load_gpu_index(model.with_name("m.powerinfer.gguf.generated.gpuidx"), 12, 1024)
    assert sum(ids.size for ids in index.hot) == 4608
    assert index.vram_capacity == 4608 * 3 * 2 * 64 == result["neuron_bytes"]


def test_a_budget_of_the_process_is_kept_and_listed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gib = 4.5e6 / GIB
    result = run_json(capsys, "-m", model, "--vram-budget", gib, "-c", 64, "-b", 8, "-o", model.parent / "out.gpuidx")
    budget = result["budget"]
    unused, total = budget.pop("unused"), budget.pop("budget")
    minimum, chunk = budget.pop("minimum_bytes"), budget.pop("prompt_chunk_tokens")
    assert total == int(gib * GIB) == unused + sum(budget.values())
    assert 0 <= unused <= 0.03 * total
    assert minimum < total
    assert chunk == 8
    # In a model this small a single change of side is a per cent of a token.
    assert 0 < result["gap"] < 0.05
    assert result["neurons_on_gpu"] == sum(layer["on_gpu"] for layer in result["layers"])
    assert result["estimate"]["tokens_per_s"] == pytest.approx(1 / result["estimate"]["seconds_a_token"])
    solved = load_gpu_index(model.parent / "out.gpuidx", 12, 1024).solved_for
    assert solved is not None
    assert (solved.budget_bytes, solved.rates["source"]) == (total, "given")
    assert not model.with_name("m.powerinfer.gguf.generated.gpuidx").exists()


def test_a_budget_of_neurons_alone(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_json(capsys, "-m", model, "--ffn-budget", 2**20 / GIB, "--dry-run")
    assert result["gpu_index"] is None
    assert 0.97 * 2**20 < result["budget"]["hot neurons"] <= 2**20
    assert result["blocks_on_gpu"] == 12
    assert not list(model.parent.glob("*.gpuidx"))


def test_the_curve_has_the_budgets_of_common_cards(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = run_json(capsys, "-m", model, "--vram-budget", 1, "--dry-run")["curve"]
    assert [point["budget_gib"] for point in curve] == [0, 4, 6, 8, 12, 16, 24]
    assert curve[0]["neurons_share"] == 0
    assert all(point["neurons_share"] == 1 for point in curve[1:])
    assert curve[1]["tokens_per_s"] > curve[0]["tokens_per_s"]


def test_budgets_below_the_minimum_show_in_the_curve(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-m", str(model), "--neurons", "0.1", "--dry-run", *RATES[:-1], str(5 * 1024)]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert output.count("below the minimum") == 1
    assert "an estimate from bandwidths, not a measurement" in " ".join(output.split())


def test_a_folder_with_one_model_is_enough(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "-m", model.parent, "--neurons", 0.1)["model"] == str(model)
    # The index that was just written is no model.
    assert run_json(capsys, "-m", model.parent, "--neurons", 0.1)["neurons_on_gpu"] == 1228


def test_a_folder_with_several_lists_them(model: Path, fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(fixtures / "relu-llama.q4.powerinfer.gguf", model.with_name("a file without suffix"))
    assert main(["-m", str(model.parent), "--neurons", "0.1", *RATES]) == 1
    error = capsys.readouterr().err
    assert "2 model files" in error
    assert "a file without suffix, m.powerinfer.gguf" in error


def test_statistics_serve_both_quantisations(model: Path, fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    q4 = Path(shutil.copy(fixtures / "relu-llama.q4.powerinfer.gguf", model.with_name("q4.gguf")))
    results = [run_json(capsys, "-m", path, "--neurons", 0.2, "--method", "frequency") for path in (model, q4)]
    assert results[0]["captured"] == results[1]["captured"]
    assert {Path(result["gpu_index"]).name for result in results} == {
        "m.powerinfer.gguf.generated.gpuidx",
        "q4.gguf.generated.gpuidx",
    }


def test_without_statistics_the_command_that_makes_them_is_told(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(model.parent / "activation")
    assert main(["-m", str(model), "--neurons", "0.25", "--json", *RATES]) == 0
    captured = capsys.readouterr()
    assert f"powerinfer-profile -m {model}" in captured.err
    result = json.loads(captured.out)
    assert (result["method"], result["captured"], result["statistics"]) == ("even", None, None)
    assert {layer["on_gpu"] for layer in result["layers"]} == {256}


def test_named_statistics_are_read_or_refused(model: Path, fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", str(model), "--activation", str(fixtures / "bamboo-activation"), "--neurons", "1", *RATES]) == 1
    assert "lack layer 2" in capsys.readouterr().err


def test_the_table_names_what_matters(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", str(model), "--vram-budget", "0.004", "-c", "64", "-b", "8", *RATES]) == 0
    output = capsys.readouterr().out
    for word in ("captured", "prompt chunk", "gap", "minimum", "KV cache", "hot neurons", "CPU only", "24 GiB"):
        assert word in output
    assert str(model.with_name("m.powerinfer.gguf.generated.gpuidx")) in "".join(output.split())


def test_a_budget_below_the_minimum_names_it(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", str(model), "--vram-budget", "0.0001", *RATES]) == 1
    assert "the minimum is" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--vram-budget", "8GB"],
        ["--vram-budget", "nan"],
        ["--vram-budget", "-2"],
        ["--vram-budget", "1e30"],
        ["--vram-budget", "0"],
        ["--vram-budget", "1", "--neurons", "0.5"],
        ["--neurons", "1.5"],
        ["--ffn-budget", "-1"],
        ["--neurons", "0.5", "--gpu-bandwidth", "0"],
        ["--neurons", "0.5", "--method", "magic"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["-m", "no such model", *arguments])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_picture(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "split.png"
    assert main(["-m", str(model), "--neurons", "0.3", "--dry-run", "--plot", str(picture), *RATES]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_said_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    picture = ["--plot", str(tmp_path / "split.png")]
    assert main(["-m", str(tmp_path / "none.gguf"), "--neurons", "0.3", *picture, *RATES]) == 1
    assert "pip install 'powerinfer-py[plot]'" in capsys.readouterr().err


def test_a_gpu_index_is_no_model(fixtures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", str(fixtures / "bamboo.reference.gpuidx"), "--neurons", "0.5", *RATES]) == 1
    assert "generic.gpu_index" in capsys.readouterr().err


def test_a_dense_model_needs_no_statistics(fixtures: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = shutil.copy(fixtures / "llama_cpp" / "llama-q8_0.gguf", tmp_path / "m.gguf")
    result = run_json(capsys, "-m", model, "--neurons", 0.5)
    assert (result["sparsity"], result["method"]) == ("dense", "milp")
    with open_gguf(model) as file:
        n_ff = file.tensors["blk.0.ffn_up.weight"].shape[0]
    assert all(layer["on_gpu"] % 32 == 0 and layer["neurons"] == n_ff for layer in result["layers"])
