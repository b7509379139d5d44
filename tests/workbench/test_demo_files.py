"""The model in the box: its files are what its parts make, its texts are apart, and it is as good as it says."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_scripts import ROOT, last_line, script

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.cli import convert
from powerinfer_py.cli import run as run_command
from powerinfer_py.convert.predictor_tensors import read_predictors
from powerinfer_py.generation.default_model import DEMO_MODEL, default_model
from powerinfer_py.gguf import GGMLType, fingerprint, open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.gpuidx import load_gpu_index
from powerinfer_py.placement.statistics.frequencies import read_frequencies
from powerinfer_py.placement.statistics.profile import read_profile
from powerinfer_py.predictor.recall import RecallCounter
from powerinfer_py.profiler.perplexity import PerplexityResult, measure_perplexity
from powerinfer_py.profiler.windows import cut_windows

HELD_OUT = sorted((Path(__file__).parents[1] / "fixtures" / "demo").glob("held_out_*.txt"))
RECORD: dict[str, Any] = json.loads((ROOT / "tools" / "results" / "demo_model.json").read_text(encoding="utf-8"))
BUILD = script("tools/build_demo_files.py")
MAX_BYTES = 8_000_000


def test_the_shipped_files_are_what_their_parts_make(capsys: pytest.CaptureFixture[str]) -> None:
    result = last_line(BUILD, ["--check"], capsys)
    assert result["changed"] == []
    readme = (DEMO_MODEL.parent / "README.md").read_text(encoding="utf-8")
    for name in (BUILD.MODEL, BUILD.INDEX):
        assert hashlib.sha256((DEMO_MODEL.parent / name).read_bytes()).hexdigest() == result["files"][name]
        assert str(result["files"][name]) in readme
    assert DEMO_MODEL.stat().st_size <= MAX_BYTES


def test_a_part_that_changed_is_noticed_and_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped, predictors = tmp_path / "shipped", tmp_path / "predictors"
    shutil.copytree(BUILD.SHIPPED, shipped)
    shutil.copytree(BUILD.PREDICTORS, predictors)
    monkeypatch.setattr(BUILD, "SHIPPED", shipped)
    monkeypatch.setattr(BUILD, "PREDICTORS", predictors)
    shutil.copy(predictors / "model_1.pt", predictors / "model_0.pt")
    assert BUILD.main(["--check"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["changed"] == [BUILD.MODEL, BUILD.INDEX]
    assert "not what their parts make" in captured.err
    assert (shipped / BUILD.MODEL).read_bytes() == DEMO_MODEL.read_bytes()
    result = last_line(BUILD, [], capsys)
    assert result["changed"] == [BUILD.MODEL, BUILD.INDEX]
    assert BUILD.files_of(shipped) == result["files"]


def test_its_predictors_and_statistics_are_those_of_the_workbench() -> None:
    with open_gguf(DEMO_MODEL) as file:
        config = read_config(file)
        predictors = read_predictors(BUILD.PREDICTORS, config.n_layer, config.n_embd, config.n_ff)
        for tensor in predictors.tensors(
            lambda _cols: GGMLType.F16, lambda x, _type: x.astype(np.float16).view(np.uint8)
        ):
            written = b"".join(np.ascontiguousarray(chunk).tobytes() for chunk in tensor.chunks())
            assert file.tensor_data(tensor.name).tobytes() == written
        index = load_gpu_index(DEMO_MODEL.parent / BUILD.INDEX, config.n_layer, config.n_ff)
        assert index.solved_for is not None
        assert index.solved_for.model_fingerprint == fingerprint(file)
        frequencies = read_frequencies(BUILD.STATISTICS, config)
    # Rates that were measured would give other bytes on another machine.
    assert b'"source": "given"' in (DEMO_MODEL.parent / BUILD.INDEX).read_bytes()
    assert index.solved_for.activation_hash == frequencies.sha256
    assert frequencies.predicted is not None
    # PowerInfer wants more than 1000 neurons a layer and predictors in whole blocks.
    assert config.n_ff > 1000
    assert config.n_ctx_train >= 256
    assert all(rank % 32 == 0 for rank in predictors.ranks)


def test_the_sets_share_no_chapter_and_each_was_used_for_its_purpose() -> None:
    sets = RECORD["sets"]
    chapters = {name: {digest for _, _, digest in own["chapters"]} for name, own in sets.items()}
    assert list(chapters) == ["train", "calibration", "profile", "held_out"]
    assert sum(map(len, chapters.values())) == len(set().union(*chapters.values()))
    assert sum(len(own["chapters"]) for own in sets.values()) == sum(map(len, chapters.values()))
    for path in HELD_OUT:
        assert hashlib.sha256(path.read_bytes()).hexdigest() in chapters["held_out"]
    profile = read_profile(BUILD.STATISTICS)
    assert [text.sha256 for text in profile.texts] == [sets["profile"]["sha256"]]


@pytest.fixture(scope="module")
def modes() -> Iterator[dict[str, LLM]]:
    options = {"threads": 1, "context_length": 256, "batch_size": 256, "max_batch": 1}
    models = {mode: LLM(DEMO_MODEL, sparsity=mode, **options) for mode in ("predictor", "exact", "dense")}
    yield models
    for model in models.values():
        model.close()


def measured(modes: dict[str, LLM], mode: str, counter: RecallCounter | None = None) -> PerplexityResult:
    text = "\n".join(path.read_text(encoding="utf-8") for path in HELD_OUT)
    windows = cut_windows(modes[mode].tokenizer, text, 256)
    return measure_perplexity(modes[mode], windows, reference=modes["dense"], observer=counter)


def test_predictors_on_chapters_that_nothing_was_made_from(modes: dict[str, LLM]) -> None:
    counter = RecallCounter(modes["dense"].engine)
    result = measured(modes, "predictor", counter)
    assert result.scored > 1000
    fired, both, named, neurons = (
        sum(getattr(layer, name) for layer in counter.layers) for name in ("fired", "both", "predicted", "neurons")
    )
    assert both / fired >= 0.98
    assert named / fired <= 2
    assert fired / neurons <= 0.2
    assert result.comparison is not None
    assert abs(math.expm1(result.comparison.log_ratio.value)) < 0.01
    assert result.shares["neurons_computed_share"] < 0.2


def test_svd_without_text_on_chapters_that_nothing_was_made_from(tmp_path: Path, modes: dict[str, LLM]) -> None:
    path = tmp_path / "svd.gguf"
    arguments = [str(DEMO_MODEL), "--predictor", "svd", "--predictor-rank", "64", "--outfile", str(path)]
    assert convert.main(arguments) == 0
    text = "\n".join(path.read_text(encoding="utf-8") for path in HELD_OUT)
    with LLM(path, sparsity="predictor", threads=1, context_length=256, batch_size=256, max_batch=1) as llm:
        counter = RecallCounter(modes["dense"].engine)
        windows = cut_windows(llm.tokenizer, text, 256)
        result = measure_perplexity(llm, windows, reference=modes["dense"], observer=counter)
    assert result.comparison is not None
    assert abs(math.expm1(result.comparison.log_ratio.value)) < 0.02
    assert sum(layer.predicted for layer in counter.layers) <= 3 * sum(layer.fired for layer in counter.layers)


def test_each_predictor_beats_a_fixed_list_of_its_size() -> None:
    results = json.loads((ROOT / "predictors" / "results" / "demo.json").read_text(encoding="utf-8"))
    with open_gguf(DEMO_MODEL) as file:
        assert results["model_fingerprint"] == fingerprint(file), "measured on another model"
    assert list(results["held_out"].values()) == [RECORD["sets"]["held_out"]["sha256"]]
    assert list(results["texts"].values()) == [RECORD["sets"]["calibration"]["sha256"]]
    for method, listed in (("trained", "hottest"), ("svd", "hottest_as_svd")):
        for own, fixed in zip(results["layers"][method], results["layers"][listed], strict=True):
            assert fixed["predicted_share"] == pytest.approx(own["predicted_share"], abs=0.001)
            assert fixed["recall"] < own["recall"]
        assert worse(results, method) < 0.02 < worse(results, listed)


def worse(results: dict[str, Any], method: str) -> float:
    return math.expm1(results["perplexity"][method]["compared"]["log_perplexity_ratio"]["value"])


def test_exact_is_dense(modes: dict[str, LLM]) -> None:
    result = measured(modes, "exact")
    assert result.comparison is not None
    assert abs(math.expm1(result.comparison.log_ratio.value)) < 1e-4


def test_each_layer_is_sparse_with_a_hot_set() -> None:
    profile = read_profile(BUILD.STATISTICS)
    for fired in profile.counts.fired:
        assert fired.sum() / (len(fired) * profile.n_tokens) <= 0.2
        hottest_fifth = np.sort(fired)[::-1][: len(fired) // 5]
        assert hottest_fifth.sum() > 0.5 * fired.sum()


def test_it_is_what_runs_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert default_model() == DEMO_MODEL
    assert run_command.main(["-p", "My dear sister", "-n", "24", "--temp", "0", "-t", "1"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.split()) > 12
    assert "tokens/s" in captured.err
    computed = re.search(r"neurons +(\d+\.\d)% computed", captured.err)
    assert computed is not None
    assert 5 < float(computed[1]) < 20


def test_the_record_meets_what_was_asked_of_it() -> None:
    evaluation, training = RECORD["evaluation"], RECORD["training"]
    assert evaluation["sampled_from"] == DEMO_MODEL.name
    assert evaluation["samples"] == 20
    assert evaluation["ratio"] <= 2
    assert evaluation["longest_copied_run"] < 30
    assert training["firing"]["silent_share"] >= 0.8
    for readme in (DEMO_MODEL.parent / "README.md", ROOT / "tools" / "README.md"):
        text = " ".join(readme.read_text(encoding="utf-8").split())
        assert f"perplexity of {evaluation['judge_on_samples']:.1f} on 20 samples of the shipped file" in text
        assert f"of {evaluation['judge_on_held_out']:.1f} on held-out text cut alike" in text
        assert f"shares with the training text is {evaluation['longest_copied_run']}." in text
    with LLM(DEMO_MODEL, threads=1) as llm:
        first = llm.generate("Emma", SamplingParams(max_tokens=8, temperature=0.0))[0].token_ids
        assert first == llm.generate("Emma", SamplingParams(max_tokens=8, temperature=0.0))[0].token_ids
