"""Statistics as the solver takes them: bound to dimensions, ordered by number, with a hash of their own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from powerinfer_py.config import ModelConfig
from powerinfer_py.errors import FileFormatError, ModelError
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement.statistics.counts import ActivationCounts
from powerinfer_py.placement.statistics.frequencies import find_folder, read_frequencies
from powerinfer_py.placement.statistics.profile import (
    PROFILE_NAME,
    ActivationProfile,
    ProfiledModel,
    ProfiledText,
    ProfileSettings,
    encode_profile,
)


@pytest.fixture
def config(fixtures: Path) -> ModelConfig:
    with open_gguf(fixtures / "relu-llama.powerinfer.gguf") as file:
        return read_config(file)


def write_counts(folder: Path, counts: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for layer, row in enumerate(counts):
        torch.save(torch.from_numpy(row.copy()), folder / f"activation_{layer}.pt")
    return folder


def write_profile(folder: Path, config: ModelConfig, fired: np.ndarray, n_tokens: int) -> Path:
    write_counts(folder, fired)
    profile = ActivationProfile(
        ProfiledModel.of(config, "ab" * 32),
        ProfileSettings(512, 512),
        (ProfiledText("cd" * 32, 1, n_tokens),),
        ActivationCounts(fired, fired + 1, fired),
        n_chunks=1,
        run="run",
    )
    (folder / PROFILE_NAME).write_bytes(encode_profile(profile))
    return folder


def test_layers_come_by_number_and_the_most_frequent_neuron_always_fires(fixtures: Path, config: ModelConfig) -> None:
    frequencies = read_frequencies(fixtures / "relu-llama-activation", config)
    counts = np.stack(
        [torch.load(fixtures / f"relu-llama-activation/activation_{i}.pt", weights_only=True) for i in range(12)]
    )
    assert np.array_equal(frequencies.fired, counts / counts.max())
    assert frequencies.predicted is None
    assert frequencies.fired.max() == 1


def test_the_profilers_file_knows_its_tokens_and_its_predictions(tmp_path: Path, config: ModelConfig) -> None:
    fired = np.arange(12 * 1024, dtype=np.int64).reshape(12, 1024) % 700
    frequencies = read_frequencies(write_profile(tmp_path / "a", config, fired, 1000), config)
    assert np.array_equal(frequencies.fired, fired / 1000)
    assert frequencies.predicted is not None
    assert np.array_equal(frequencies.predicted, (fired + 1) / 1000)


def test_the_hash_is_one_of_counts_not_of_files(tmp_path: Path, config: ModelConfig) -> None:
    fired = np.random.default_rng(0).integers(0, 900, (12, 1024))
    plain = read_frequencies(write_counts(tmp_path / "plain", fired), config).sha256
    assert read_frequencies(write_counts(tmp_path / "floats", fired.astype(np.float32)), config).sha256 == plain
    assert read_frequencies(write_profile(tmp_path / "profile", config, fired, 1000), config).sha256 == plain
    fired[11, 1023] += 1
    assert read_frequencies(write_counts(tmp_path / "other", fired), config).sha256 != plain


@pytest.mark.parametrize("field", ["n_layer", "n_ff", "n_embd"])
def test_statistics_of_another_model_are_refused(tmp_path: Path, config: ModelConfig, field: str) -> None:
    fired = np.ones((12, 1024), np.int64)
    other = replace(config, **{field: 2 * getattr(config, field)})
    with pytest.raises(ModelError, match=field):
        read_frequencies(write_profile(tmp_path / "a", config, fired, 2), other)
    if field != "n_embd":
        (tmp_path / "a" / PROFILE_NAME).unlink()
        with pytest.raises(ModelError, match=str(tmp_path / "a")):
            read_frequencies(tmp_path / "a", other)


def test_statistics_in_which_nothing_fires_are_refused(tmp_path: Path, config: ModelConfig) -> None:
    folder = write_counts(tmp_path / "a", np.zeros((12, 1024), np.int64))
    with pytest.raises(FileFormatError, match="no neuron ever fired"):
        read_frequencies(folder, config)


def test_the_folder_beside_a_model_is_found(fixtures: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    assert find_folder(model) is None
    (tmp_path / "activation").mkdir()
    assert find_folder(model) is None
    shutil.copy(fixtures / "bamboo-activation/activation_0.pt", tmp_path / "activation")
    assert find_folder(model) == tmp_path / "activation"
