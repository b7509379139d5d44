"""From a model and a text to a folder of predictors that the runtime reads; stopped, resumed, damaged, refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import edited_copy
from helpers_predictable import FIXTURES, N_EMBD, N_FF, N_LAYER, write_predictable, write_text
from safetensors.numpy import load_file

from powerinfer_py import LLM
from powerinfer_py.convert.gguf_source import convert_gguf
from powerinfer_py.errors import FileFormatError, ModelError, OptionError, PowerInferError
from powerinfer_py.gguf import ValueType
from powerinfer_py.predictor import collection as collection_module
from powerinfer_py.predictor import making
from powerinfer_py.predictor.making import Job, Report, make_predictors
from powerinfer_py.predictor.rank import predictor_bytes
from powerinfer_py.predictor.recall import RecallCounter
from powerinfer_py.predictor.shard import token_bytes
from powerinfer_py.predictor.training import TrainingOptions

FILES = ("model_0.pt", "model_1.pt", "config.json", "predictors.safetensors", "training.json")
TOKENS = 3000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_predictable(folder / "model.gguf")
    write_text(folder / "text.txt", 1000)
    return folder


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards a layer from little text."""
    monkeypatch.setattr(collection_module, "SHARD_TOKENS", 600)


def job(inputs: Path, output: Path, **changes: Any) -> Job:
    made = Job(
        inputs / "model.gguf",
        (inputs / "text.txt",),
        output,
        rank=12,
        budget=0.5,
        tokens=TOKENS,
        window=32,
        training=TrainingOptions(epochs=2),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    output = tmp_path_factory.mktemp("finished") / "predictor"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection_module, "SHARD_TOKENS", 600)
        return output, make_predictors(job(inputs, output))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_what_is_written(finished: tuple[Path, Report]) -> None:
    folder, report = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "config.json").read_text()) == {"sparse_threshold": 0.0}
    together = load_file(folder / "predictors.safetensors")
    for layer in range(N_LAYER):
        state = torch.load(folder / f"model_{layer}.pt", weights_only=True)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()} == {
            "fc1.weight": ((12, N_EMBD), torch.float16),
            "fc2.weight": ((N_FF, 12), torch.float16),
        }
        for name, tensor in state.items():
            assert np.array_equal(together[f"blk.{layer}.{name}"], tensor.numpy())
    assert [layer.layer for layer in report.layers] == [0, 1]
    for layer in report.layers:
        assert layer.bytes == predictor_bytes(12, N_EMBD, N_FF)
        assert layer.recall >= 0.985
        assert layer.predicted_share < 1.4 * layer.fired_share
    assert report.tokens == TOKENS


def test_a_model_with_them_runs_as_reported(finished: tuple[Path, Report], inputs: Path, tmp_path: Path) -> None:
    """Recall and share of a text that took no part, counted by the runtime with the file's threshold."""
    folder, report = finished
    path = tmp_path / "with.gguf"
    convert_gguf(
        inputs / "model.gguf", folder, path, outtype=None, dense=False, activation=None, fatrelu_threshold=None
    )
    fresh = write_text(tmp_path / "fresh.txt", 400, seed=77).read_text()
    with LLM(path, sparsity="exact", context_length=256) as llm:
        assert llm.config.sparse_threshold == 0.0
        counter = RecallCounter(llm.engine)
        ids = llm.tokenize(fresh)[:1024]
        for start in range(0, len(ids), 32):
            llm.logits([llm.tokenizer.bos_id or 0, *ids[start : start + 31]], observer=counter)
    for counted, reported in zip(counter.layers, report.layers, strict=True):
        assert counted.recall >= 0.985
        assert counted.predicted / counted.neurons == pytest.approx(reported.predicted_share, rel=0.1)
    with LLM(path) as llm:
        assert str(llm.sparsity) == "predictor"
        sparse = llm.logits(ids[:100])
        assert llm.engine.activity.share_computed < 0.5
    with LLM(path, sparsity="dense") as llm:
        dense = llm.logits(ids[:100])
    assert np.square(sparse - dense).sum() / np.square(dense).sum() < 1e-3


def test_resumed_equals_uninterrupted(
    finished: tuple[Path, Report], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of collecting, then between layers, then while the last file was written."""
    output = tmp_path / "predictor"
    real_shard, real_train = collection_module.write_shard, making.train_layer

    def stop_at_third(path: Path, run: str, arrays: Any) -> None:
        if path.name == "shard_2.safetensors":
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        real_shard(path, run, arrays)

    def stop_at_layer_1(*arguments: Any, **named: Any) -> Any:
        if arguments[4] == 1:
            raise KeyboardInterrupt
        return real_train(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(collection_module, "write_shard", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            make_predictors(job(inputs, output))
    assert not (output / "config.json").exists()
    whole = output / "collected" / "layer_0" / "shard_0.safetensors"
    before = whole.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(making, "train_layer", stop_at_layer_1)
        with pytest.raises(KeyboardInterrupt):
            make_predictors(job(inputs, output))
    assert (output / "model_0.pt").exists()
    assert not (output / "model_1.pt").exists()
    assert not whole.exists(), "a finished layer's tokens are let go"
    assert (output / "collected" / "layer_1" / "shard_0.safetensors").stat().st_mtime_ns <= before + 10**9
    lines: list[str] = []
    report = make_predictors(job(inputs, output), lines.append)
    assert any("1 of 2 layers are finished" in line for line in lines)
    assert report == finished[1]
    assert contents(output) == contents(finished[0])
    assert not (output / "collected").exists()


def test_passes_under_a_small_limit_end_in_the_same_bytes(
    finished: tuple[Path, Report], inputs: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    one_layer = TOKENS * token_bytes(N_EMBD, N_FF)
    make_predictors(job(inputs, tmp_path / "p", max_disk_bytes=one_layer), lines.append)
    assert "in 2 passes over the text" in lines[0]
    assert contents(tmp_path / "p") == contents(finished[0])
    with pytest.raises(OptionError, match="more than the"):
        make_predictors(job(inputs, tmp_path / "q", max_disk_bytes=one_layer - 1))


@pytest.mark.parametrize("suffixes", [{".pt", ".json"}, {".safetensors"}], ids=["pt", "safetensors"])
def test_either_form_alone_gives_the_same_model(
    suffixes: set[str], finished: tuple[Path, Report], inputs: Path, tmp_path: Path
) -> None:
    """Layers in files of their own with config.json, or all in one file, which states the threshold too."""
    one = tmp_path / "one"
    one.mkdir()
    for path in finished[0].iterdir():
        if path.suffix in suffixes:
            shutil.copy(path, one)
    models = []
    for folder in (finished[0], one):
        path = tmp_path / f"{folder.name}.gguf"
        convert_gguf(
            inputs / "model.gguf", folder, path, outtype=None, dense=False, activation=None, fatrelu_threshold=None
        )
        models.append(path.read_bytes())
    assert models[0] == models[1]


def test_a_damaged_layer_is_made_again(finished: tuple[Path, Report], inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "predictor"
    shutil.copytree(finished[0], output)
    (output / "model_1.pt").write_bytes((output / "model_1.pt").read_bytes()[:-1])
    (output / "config.json").unlink()
    make_predictors(job(inputs, output))
    assert contents(output) == contents(finished[0])


def test_finished_work_is_only_reported(finished: tuple[Path, Report], inputs: Path) -> None:
    before = {name: (finished[0] / name).stat().st_mtime_ns for name in FILES[:2]}
    assert make_predictors(job(inputs, finished[0])) == finished[1]
    assert before == {name: (finished[0] / name).stat().st_mtime_ns for name in FILES[:2]}


@pytest.mark.parametrize("method", ["trained", "svd"])
def test_ranks_by_need_within_the_budget(method: str, inputs: Path, tmp_path: Path) -> None:
    made = job(inputs, tmp_path / "p", rank=None, budget=0.1, method=method, training=TrainingOptions(epochs=1))
    report = make_predictors(made)
    total = sum(layer.bytes for layer in report.layers)
    assert total == report.to_dict()["bytes"]
    assert total <= report.budget_bytes == int(0.1 * report.model_bytes)
    assert total > 0.7 * report.budget_bytes
    assert all(layer.recall > 0.98 for layer in report.layers)


def test_full_disk(
    finished: tuple[Path, Report], inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "predictor"
    left = 4
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(PowerInferError, match="No space left on device; what was finished before is kept"):
            make_predictors(job(inputs, output))
    assert (output / "collected" / "layer_0" / "shard_0.safetensors").exists()
    assert not list(output.rglob("*.tmp"))
    make_predictors(job(inputs, output))
    assert contents(output) == contents(finished[0])


def test_too_little_disk_is_said_before_the_start(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(PowerInferError, match="are needed"):
        make_predictors(job(inputs, tmp_path / "p"))


def test_folders_of_others_are_left_alone(finished: tuple[Path, Report], inputs: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(FIXTURES / "opt-predictor", foreign)
    with pytest.raises(OptionError, match="which this command did not write"):
        make_predictors(job(inputs, foreign))
    mine = tmp_path / "mine"
    shutil.copytree(finished[0], mine)
    for changed, name in (({"rank": 8}, "rank"), ({"seed": 3}, "seed"), ({"tokens": 2000}, "text and windows")):
        with pytest.raises(OptionError, match=f"another {name}"):
            make_predictors(job(inputs, mine, **changed))
    assert contents(mine) == contents(finished[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(PowerInferError, match="cannot write into this folder: Not a directory"):
        make_predictors(job(inputs, tmp_path / "file"))


@pytest.mark.parametrize(
    "state", ["", "[]", "{}", '{"settings": 1, "ranks": null, "layers": {}}', '{"settings": {}, "layers": 3}']
)
def test_a_record_that_is_none(state: str, inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(state)
    with pytest.raises(FileFormatError, match=r"training\.json"):
        make_predictors(job(inputs, tmp_path))


def test_models_without_silence(inputs: Path, tmp_path: Path) -> None:
    dense = write_predictable(tmp_path / "dense.gguf", magic="GGUF")
    with pytest.raises(ModelError, match="activation is silu"):
        make_predictors(job(inputs, tmp_path / "p", model=dense))
    assert not (tmp_path / "p").exists()


def test_a_dense_file_of_a_relu_model_gives_the_same(
    finished: tuple[Path, Report], inputs: Path, tmp_path: Path
) -> None:
    dense = write_predictable(tmp_path / "dense.gguf", magic="GGUF", activation="relu")
    make_predictors(job(inputs, tmp_path / "p", model=dense))
    for name in FILES[:3]:
        assert (tmp_path / "p" / name).read_bytes() == (finished[0] / name).read_bytes()


def test_numbers_that_are_none(inputs: Path, tmp_path: Path) -> None:
    def poison(name: str, data: Any) -> Any:
        if name == "token_embd.weight":
            data.view(np.float16)[:] = np.nan
        return data

    broken = edited_copy(inputs / "model.gguf", tmp_path / "nan.gguf", edit=poison)
    with pytest.raises(PowerInferError, match="layer 0 sees NaN"):
        make_predictors(job(inputs, tmp_path / "p", model=broken))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 3}, "rank is 3"),
        ({"rank": 65}, "rank 65, expected 4 to 64"),
        ({"rank": 64, "budget": 0.05}, "raise the budget"),
        ({"rank": 13, "method": "svd"}, "an even number"),
        ({"method": "magic"}, "method 'magic'"),
        ({"budget": 0.0}, "budget is 0.0"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"window": 1}, "window is 1"),
        ({"window": 100000}, "the model's context is"),
        ({"tokens": 100}, "takes at least 10"),
        ({"texts": ()}, "no text"),
        ({"device": "tpu"}, "device 'tpu'"),
    ],
)
def test_impossible_wishes(changes: dict[str, Any], message: str, inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        make_predictors(job(inputs, tmp_path / "p", **changes))
    assert not (tmp_path / "p").exists()


def test_what_trains_measures_nothing(inputs: Path, tmp_path: Path) -> None:
    text, copy = inputs / "text.txt", tmp_path / "copy.txt"
    copy.write_bytes(text.read_bytes())
    for changes in ({"texts": (text, copy)}, {"calibration_texts": (copy,)}):
        with pytest.raises(OptionError, match="holds the same text as"):
            make_predictors(job(inputs, tmp_path / "p", **changes))
    assert not (tmp_path / "p").exists()


def test_no_cuda_here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PowerInferError, match="no CUDA device"):
        make_predictors(job(inputs, tmp_path / "p", device="cuda"))


def test_svd_says_what_it_cannot_promise(inputs: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    values = {
        "powerinfer.activation": ("fatrelu", ValueType.STRING),
        "powerinfer.fatrelu_threshold": (0.05, ValueType.FLOAT32),
    }
    fat = edited_copy(inputs / "model.gguf", tmp_path / "fat.gguf", values=values)  # type: ignore[arg-type]
    report = make_predictors(job(inputs, tmp_path / "p", model=fat, method="svd"), lines.append)
    assert any("reported, not promised" in line for line in lines)
    assert all(layer.recall > 0.98 for layer in report.layers)
