"""Counting: against plain equations, stopped and resumed, merged, refused; and what a full disk leaves."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import edited_copy, write_opt

from powerinfer_py import LLM
from powerinfer_py.errors import FileFormatError, ModelError, OptionError, PowerInferError
from powerinfer_py.gguf import ValueType, open_gguf
from powerinfer_py.gguf.quants import dequantize
from powerinfer_py.placement.statistics.layer_files import read_activations
from powerinfer_py.placement.statistics.profile import (
    PROFILE_NAME,
    STATE_NAME,
    ActivationProfile,
    merge_profiles,
    read_profile,
)
from powerinfer_py.profiler.chunks import cut_chunks
from powerinfer_py.profiler.folder import ProfileFolder
from powerinfer_py.profiler.run import ProfilePlan, ProfileRun, plan_profile

MakePlan = Callable[..., ProfilePlan]


def profiled(plan: ProfilePlan, folder: Path, **options: Any) -> ActivationProfile:
    return ProfileRun(plan, ProfileFolder(folder, **options)).execute()


def assert_same(a: ActivationProfile, b: ActivationProfile) -> None:
    assert (a.model, a.settings, a.texts, a.n_chunks) == (b.model, b.settings, b.texts, b.n_chunks)
    assert a.counts.arrays().keys() == b.counts.arrays().keys()
    for name, array in a.counts.arrays().items():
        assert np.array_equal(array, b.counts.arrays()[name]), name


def test_counts_are_those_of_plain_equations(make_plan: MakePlan, fixtures: Path, tmp_path: Path) -> None:
    """The residual stream is watched; norm, gate and predictor are computed here, in float64."""
    path = fixtures / "relu-llama.powerinfer.gguf"
    plan = make_plan(path, max_tokens=150)
    profile = profiled(plan, tmp_path / "out")
    n_layer, n_ff = 12, 1024
    fired, predicted, both = (np.zeros((n_layer, n_ff), np.int64) for _ in range(3))
    with open_gguf(path) as file:

        def weights(name: str, rows: int, cols: int) -> np.ndarray[Any, Any]:
            return dequantize(file.tensor_data(name), file.tensors[name].ggml_type, rows, cols).astype(np.float64)

        n_embd = plan.model.n_embd
        parts = [
            (
                weights(f"blk.{i}.ffn_norm.weight", 1, n_embd),
                weights(f"blk.{i}.ffn_gate.weight", n_ff, n_embd),
                weights(f"blk.{i}.fc1.weight", 32, n_embd),
                weights(f"blk.{i}.fc2.weight", n_ff, 32),
            )
            for i in range(n_layer)
        ]
    with LLM(path, sparsity="exact", threads=1) as llm:
        eps = llm.config.norm_eps

        def observe(layer: int, x: torch.Tensor, _predicted: object, _fired: object) -> None:
            rows = x.numpy().astype(np.float64)[1:]  # the token that begins texts is not counted
            norm, gate, fc1, fc2 = parts[layer]
            h = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + eps) * norm
            fires = h @ gate.T > 0
            named = np.maximum(rows @ fc1.T, 0) @ fc2.T >= 0.1
            fired[layer] += fires.sum(axis=0)
            predicted[layer] += named.sum(axis=0)
            both[layer] += (fires & named).sum(axis=0)

        n_tokens = 0
        for chunk in cut_chunks(llm.tokenizer, plan.documents, 64, 150):
            llm.logits(chunk.token_ids, observe)
            n_tokens += len(chunk.token_ids) - 1
    assert profile.n_tokens == n_tokens == 150
    counts = profile.counts
    assert counts.predicted is not None
    assert counts.both is not None
    # A handful of pre-activations lie within rounding of their threshold.
    for mine, expected in ((counts.fired, fired), (counts.predicted, predicted), (counts.both, both)):
        assert expected.sum() > 0.1 * n_tokens * n_layer * n_ff
        assert np.abs(mine - expected).sum() <= 2e-5 * n_tokens * n_layer * n_ff


def test_files_are_powerinfers(make_plan: MakePlan, tmp_path: Path) -> None:
    profile = profiled(make_plan("relu-llama.q4.powerinfer.gguf", max_tokens=40), tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted([PROFILE_NAME, *(f"activation_{i}.pt" for i in range(12))])
    for layer, fired in enumerate(profile.counts.fired):
        tensor = torch.load(tmp_path / "out" / f"activation_{layer}.pt", weights_only=True)
        assert tensor.dtype == torch.int64
        assert tensor.tolist() == fired.tolist()
    read = read_profile(tmp_path / "out")
    assert_same(read, profile)
    assert read.run == profile.run
    assert np.array_equal(np.stack(read_activations(tmp_path / "out", 12, 1024)), profile.counts.fired)


def test_every_architecture_and_batch_size(make_plan: MakePlan, tmp_path: Path) -> None:
    opt = write_opt(tmp_path / "opt.gguf")
    for number, model in enumerate(["bamboo.powerinfer.gguf", "relu-falcon.powerinfer.gguf", opt]):
        whole = profiled(make_plan(model, batch_size=64), tmp_path / f"whole{number}")
        single = profiled(make_plan(model, batch_size=1, threads=2), tmp_path / f"single{number}")
        assert 0.01 < whole.counts.fired.mean() / whole.n_tokens < 0.9
        assert np.abs(whole.counts.fired - single.counts.fired).sum() <= 1e-4 * whole.n_tokens * whole.counts.fired.size
        assert whole.texts == single.texts


def test_without_predictors(make_plan: MakePlan, fixtures: Path, tmp_path: Path) -> None:
    model = edited_copy(
        fixtures / "bamboo.powerinfer.gguf", tmp_path / "model", drop=lambda name: ".fc1." in name or ".fc2." in name
    )
    bare = profiled(make_plan(model), tmp_path / "bare")
    full = profiled(make_plan(), tmp_path / "full")
    assert bare.counts.predicted is None
    assert np.array_equal(bare.counts.fired, full.counts.fired)
    assert_same(read_profile(tmp_path / "bare"), bare)


class Killed(BaseException):
    """Ends a run as if the process had been killed."""


def stop_after(n_chunks: int, error: type[BaseException]) -> Callable[[int, int], None]:
    seen = []

    def progress(_tokens: int, _bytes: int) -> None:
        seen.append(None)
        if len(seen) == n_chunks:
            raise error

    return progress


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
def test_stopped_and_resumed_gives_the_same(error: type[BaseException], make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan()
    profiled(plan, tmp_path / "whole")
    expected = (tmp_path / "whole" / PROFILE_NAME).read_bytes()
    folder = tmp_path / "stopped"
    done = 0
    for n_chunks in (2, 4, 5, 100):
        run = ProfileRun(plan, ProfileFolder(folder), save_every_s=1000.0 if error is KeyboardInterrupt else 0.0)
        if n_chunks == 100:
            run.execute()
            break
        with pytest.raises(error):
            run.execute(stop_after(n_chunks, error))
        assert not (folder / PROFILE_NAME).exists()
        with pytest.raises(FileFormatError, match="unfinished"):
            read_profile(folder)
        state = ProfileFolder(folder).state(plan.run)
        assert state is not None
        # A kill loses what was counted since the last save, an interrupt nothing.
        assert state.n_chunks == (n_chunks if error is KeyboardInterrupt else n_chunks - 1)
        assert run.timing.resumed_tokens == done
        done = state.n_tokens
    assert run.timing.resumed_tokens == done > 0
    assert (folder / PROFILE_NAME).read_bytes() == expected
    assert not (folder / STATE_NAME).exists()


def test_a_finished_run_is_not_run_again(make_plan: MakePlan, tmp_path: Path) -> None:
    first = profiled(make_plan(), tmp_path / "out")
    # What decides no number makes no other run.
    run = ProfileRun(make_plan(threads=2), ProfileFolder(tmp_path / "out"))
    assert_same(run.execute(), first)
    assert run.timing.tokens == 0


def test_two_halves_merged_are_the_whole(make_plan: MakePlan, texts: list[str], tmp_path: Path) -> None:
    whole = profiled(make_plan(), tmp_path / "whole")
    halves = [profiled(make_plan(paths=[text]), tmp_path / Path(text).stem) for text in texts]
    assert_same(merge_profiles(halves), whole)
    assert merge_profiles(halves).run == merge_profiles(halves[::-1]).run
    with pytest.raises(OptionError, match="more than one of these runs"):
        merge_profiles([*halves, whole])
    twice = merge_profiles([whole, whole], same_text=True)
    assert np.array_equal(twice.counts.fired, 2 * whole.counts.fired)
    assert twice.n_tokens == 2 * whole.n_tokens
    other = dataclasses.replace(whole, model=dataclasses.replace(whole.model, fingerprint="0" * 64))
    with pytest.raises(ModelError, match="fingerprint"):
        merge_profiles([halves[0], other])
    other = dataclasses.replace(whole, settings=dataclasses.replace(whole.settings, context=32))
    with pytest.raises(OptionError, match="context is 64 in the first and 32"):
        merge_profiles([halves[0], other])


def test_other_statistics_are_replaced_only_when_asked(make_plan: MakePlan, texts: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    old = profiled(make_plan("relu-llama.powerinfer.gguf", max_tokens=30), folder)
    plan = make_plan()
    with pytest.raises(OptionError, match="another run"):
        profiled(plan, folder)
    # Until the new statistics are complete the old ones stay whole, through an interrupt too.
    run = ProfileRun(plan, ProfileFolder(folder, overwrite=True))
    with pytest.raises(KeyboardInterrupt):
        run.execute(stop_after(2, KeyboardInterrupt))
    assert_same(read_profile(folder), old)
    new = profiled(plan, folder)
    assert_same(read_profile(folder), new)
    assert len(list(folder.glob("*.pt"))) == 2, "layers that only the old model had are gone"
    with pytest.raises(KeyboardInterrupt):
        ProfileRun(make_plan(paths=texts[:1]), ProfileFolder(tmp_path / "o")).execute(stop_after(1, KeyboardInterrupt))
    with pytest.raises(OptionError, match="unfinished run"):
        profiled(plan, tmp_path / "o")


def test_statistics_of_another_origin_are_kept(make_plan: MakePlan, tmp_path: Path) -> None:
    torch.save(torch.ones(1024), tmp_path / "activation_0.pt")
    with pytest.raises(OptionError, match="another origin"):
        profiled(make_plan(), tmp_path)
    assert torch.load(tmp_path / "activation_0.pt", weights_only=True).tolist() == [1.0] * 1024
    profiled(make_plan(), tmp_path, overwrite=True)


def test_half_written_state_and_statistics(make_plan: MakePlan, tmp_path: Path) -> None:
    plan = make_plan()
    with pytest.raises(KeyboardInterrupt):
        ProfileRun(plan, ProfileFolder(tmp_path)).execute(stop_after(2, KeyboardInterrupt))
    state = tmp_path / STATE_NAME
    whole = state.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (b"", whole[:100], whole[:-1], bytes(flipped)):
        state.write_bytes(damaged)
        with pytest.raises(FileFormatError, match="cannot be resumed"):
            profiled(plan, tmp_path)
        assert state.read_bytes() == damaged
    profile = profiled(plan, tmp_path, overwrite=True)
    layer = tmp_path / "activation_1.pt"
    good = layer.read_bytes()
    torch.save(torch.from_numpy(profile.counts.fired[0].copy()), layer)
    with pytest.raises(FileFormatError, match=r"activation_1.pt holds other counts"):
        profiled(plan, tmp_path)
    # The end between the layers' files and the last one: the state of that moment repairs the folder.
    state.write_bytes(whole)
    assert_same(profiled(plan, tmp_path), profile)
    assert layer.read_bytes() == good


def test_a_full_disk_loses_nothing(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    expected = profiled(plan, tmp_path / "whole")
    folder = tmp_path / "out"
    room = 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    failures = 0
    # A file costs two syncs, of itself and of the folder, whose failure is no error.
    for room_at_first in range(0, 40, 2):
        room = room_at_first
        held = ProfileFolder(folder).state(plan.run)
        try:
            run = ProfileRun(plan, ProfileFolder(folder), save_every_s=0.0)
            profile = run.execute()
            break
        except PowerInferError as error:
            failures += 1
            assert "No space left" in str(error)
            assert "\n" not in str(error)
            assert not list(folder.glob(".powerinfer-*"))
            now = ProfileFolder(folder).state(plan.run)
            assert held is None or (now is not None and now.n_chunks >= held.n_chunks)
    assert failures >= 3
    assert_same(profile, expected)
    assert_same(read_profile(folder), expected)


def test_two_processes_do_not_share_a_folder(make_plan: MakePlan, tmp_path: Path) -> None:
    with ProfileFolder(tmp_path).locked(), pytest.raises(OptionError, match="another process"):
        profiled(make_plan(), tmp_path)


def test_refused_models_and_texts(make_plan: MakePlan, fixtures: Path, tmp_path: Path) -> None:
    silu = fixtures / "llama_cpp" / "llama.gguf"
    with pytest.raises(OptionError, match="activation of this model is silu"):
        make_plan(silu)
    with pytest.raises(OptionError, match="too few to fill the context of 256"):
        profiled(make_plan(context_length=256, paths=[make_text(tmp_path, "A short text.")]), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(PowerInferError, match="context"):
        profiled(make_plan(context_length=100_000), tmp_path / "out")
    with pytest.raises(OptionError, match="no text"):
        plan_profile(fixtures / "bamboo.powerinfer.gguf", [])


def make_text(folder: Path, text: str) -> str:
    (folder / "text").write_text(text, encoding="utf-8")
    return str(folder / "text")


def test_fatrelu_threshold_counts(make_plan: MakePlan, fixtures: Path, tmp_path: Path) -> None:
    """A neuron fires from the threshold on, so that a higher one leaves fewer; and it is another model's statistics."""
    source = fixtures / "relu-llama.powerinfer.gguf"
    counts = []
    for threshold in (0.0, 0.5):
        values = {
            "powerinfer.activation": ("fatrelu", ValueType.STRING),
            "powerinfer.fatrelu_threshold": (threshold, ValueType.FLOAT32),
        }
        model = edited_copy(source, tmp_path / f"model{threshold}", values=values)
        plan = make_plan(model, max_tokens=40)
        counts.append(profiled(plan, tmp_path / f"out{threshold}").counts.fired)
    relu = profiled(make_plan(source, max_tokens=40), tmp_path / "relu").counts.fired
    assert (counts[0] - relu).sum() <= 1e-3 * relu.sum()
    assert counts[1].sum() < 0.9 * counts[0].sum()


def test_statistics_serve_models_of_the_same_dimensions(make_plan: MakePlan, fixtures: Path, tmp_path: Path) -> None:
    profile = profiled(make_plan("relu-llama.powerinfer.gguf", max_tokens=20), tmp_path / "out")
    with LLM(fixtures / "relu-llama.q4.powerinfer.gguf") as llm:
        assert profile.model.misfit(llm.config) is None
    with LLM(fixtures / "bamboo.powerinfer.gguf") as llm:
        assert "architecture llama" in str(profile.model.misfit(llm.config))
