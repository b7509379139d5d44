"""Which index is used: given, kept or solved; and everything for which a kept one is solved again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_placement import STATED_RATES

from powerinfer_py.config import Sparsity
from powerinfer_py.errors import PowerInferError
from powerinfer_py.gguf import open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.placement import index_files
from powerinfer_py.placement.fixed_bytes import fixed_bytes
from powerinfer_py.placement.gpuidx import GpuIndex, GpuIndexError, load_gpu_index, write_gpu_index
from powerinfer_py.placement.index_choice import ChosenPlacement, IndexChooser, IndexOptions
from powerinfer_py.placement.sizes import ModelSizes, model_sizes

BUDGET = 400_000


@pytest.fixture
def model(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with statistics beside it, in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "a model's folder"
    shutil.copytree(fixtures / "bamboo-activation", folder / "activation")
    return Path(shutil.copy(fixtures / "bamboo.powerinfer.gguf", folder / "m.gguf"))


def choose(
    model: Path,
    budget: int = BUDGET,
    options: IndexOptions | None = None,
    sparsity: Sparsity = Sparsity.PREDICTOR,
) -> ChosenPlacement:
    with open_gguf(model) as file:
        sizes = sizes_of(model, sparsity)
        chooser = IndexChooser(file, sparsity, STATED_RATES, options or IndexOptions(), context_bytes=1000)
        placement = chooser(sizes, fixed_bytes(sizes, 1), budget)
        assert chooser.chosen is not None
        assert chooser.chosen.placement is placement
        return chooser.chosen


def sizes_of(model: Path, sparsity: Sparsity = Sparsity.PREDICTOR) -> ModelSizes:
    with open_gguf(model) as file:
        return model_sizes(file, read_config(file), sparsity=sparsity, n_ctx=64)


def hot(chosen: ChosenPlacement) -> list[list[int]]:
    return [placed.hot.tolist() for placed in chosen.placement.layers]


def test_a_solved_index_is_kept_beside_the_model_and_used_again(model: Path) -> None:
    first = choose(model)
    beside = model.with_name("m.gguf.generated.gpuidx")
    assert (first.origin, first.path, first.notices) == ("solved", beside, ())
    assert first.captured is not None and 0 < first.captured < 1
    second = choose(model)
    assert (second.origin, second.path, second.notices) == ("kept", beside, ())
    assert hot(second) == hot(first)
    assert second.expected_s == first.expected_s
    index = load_gpu_index(beside, 2, 1024)
    sizes = sizes_of(model)
    assert index.vram_capacity == sum(ids.size for ids in index.hot) * sizes.layers[0].neuron_bytes
    assert index.solved_for is not None
    assert index.solved_for.budget_bytes == 1000 + fixed_bytes(sizes, 1).total + BUDGET


def test_a_budget_a_little_larger_reuses_a_larger_one_does_not(model: Path) -> None:
    choose(model)
    fixed = fixed_bytes(sizes_of(model), 1).total
    assert choose(model, BUDGET + (fixed + BUDGET) // 50).origin == "kept"
    again = choose(model, BUDGET + (fixed + BUDGET) // 20)
    assert again.origin == "solved"
    assert "of the" in again.notices[0]


def test_a_smaller_budget_solves_again(model: Path) -> None:
    before = choose(model)
    after = choose(model, BUDGET - 2000)
    assert after.origin == "solved"
    assert "needs" in after.notices[0]
    assert after.placement.n_hot < before.placement.n_hot


def test_everything_on_the_gpu_is_kept_for_any_larger_budget(model: Path) -> None:
    assert choose(model, 10**7).placement.n_hot == 2048
    assert choose(model, 10**9).origin == "kept"


def change_weight(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[-100] ^= 1
    model.write_bytes(data)


def change_statistics(model: Path) -> None:
    path = model.parent / "activation" / "activation_1.pt"
    torch.save(torch.load(path, weights_only=True).flip(0), path)


def drop_statistics(model: Path) -> None:
    shutil.rmtree(model.parent / "activation")


def truncate_index(model: Path) -> None:
    path = model.with_name("m.gguf.generated.gpuidx")
    path.write_bytes(path.read_bytes()[:-3000])


def spoil_index(model: Path) -> None:
    path = model.with_name("m.gguf.generated.gpuidx")
    with open_gguf(path) as file:
        offset = file.tensors["blk.1.gpu_bucket"].offset
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)


STALE: dict[str, Callable[[Path], None]] = {
    "a changed model": change_weight,
    "other statistics": change_statistics,
    "no statistics": drop_statistics,
    "a truncated file": truncate_index,
    "a file that contradicts itself": spoil_index,
}


@pytest.mark.parametrize("change", STALE)
def test_a_stale_index_is_solved_again(model: Path, change: str) -> None:
    choose(model)
    STALE[change](model)
    again = choose(model)
    assert again.origin == "solved"
    assert any("is not used" in notice for notice in again.notices)
    assert again.path == model.with_name("m.gguf.generated.gpuidx")
    assert choose(model).origin == "kept"


def test_another_mode_solves_again(model: Path) -> None:
    choose(model)
    assert "another sparsity mode" in choose(model, sparsity=Sparsity.EXACT).notices[0]


def test_reset_solves_again_and_replaces_the_kept_one(model: Path) -> None:
    choose(model, BUDGET)
    before = model.with_name("m.gguf.generated.gpuidx").stat().st_ino
    assert choose(model, options=IndexOptions(reset=True)).origin == "solved"
    assert model.with_name("m.gguf.generated.gpuidx").stat().st_ino != before


def test_disabled_places_blocks_and_no_neurons(model: Path) -> None:
    chosen = choose(model, options=IndexOptions(disable=True))
    assert (chosen.origin, chosen.placement.n_hot) == ("disabled", 0)
    assert all(placed.block_on_gpu for placed in chosen.placement.layers)
    assert not model.with_name("m.gguf.generated.gpuidx").exists()


def test_powerinfers_own_file_is_left_alone_and_reported(model: Path, fixtures: Path) -> None:
    theirs = model.with_name("m.gguf.generated.gpuidx")
    shutil.copy(fixtures / "bamboo.reference.gpuidx", theirs)
    chosen = choose(model)
    assert chosen.path == model.with_name("m.gguf.powerinfer-py.gpuidx")
    assert "left alone" in chosen.notices[0]
    assert theirs.read_bytes() == (fixtures / "bamboo.reference.gpuidx").read_bytes()
    again = choose(model)
    assert again.origin == "kept"
    assert again.notices == chosen.notices


def test_a_folder_that_cannot_be_written_means_the_users_cache(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = index_files.write_gpu_index

    def refuse(path: Path, index: GpuIndex) -> None:
        if path.parent == model.parent:
            raise PowerInferError(f"{path}: cannot write: Read-only file system")
        written(path, index)

    monkeypatch.setattr(index_files, "write_gpu_index", refuse)
    chosen = choose(model)
    assert chosen.path is not None and chosen.path.parent == tmp_path / "cache" / "powerinfer-py" / "gpuidx"
    assert "Read-only file system" in chosen.notices[0]
    assert choose(model).origin == "kept"


def test_where_nothing_can_be_written_the_split_is_used_all_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _index: GpuIndex) -> None:
        raise PowerInferError(f"{path}: cannot write: No space left on device")

    monkeypatch.setattr(index_files, "write_gpu_index", refuse)
    chosen = choose(model)
    assert chosen.path is None
    assert chosen.placement.n_hot > 0
    assert "could not be kept" in chosen.notices[0]


def test_without_statistics_the_exact_command_is_the_notice(model: Path) -> None:
    drop_statistics(model)
    chosen = choose(model)
    assert chosen.captured is None
    assert f"powerinfer-profile -m '{model.parent.parent}" in chosen.notices[0].replace('"\'"', "'")
    assert abs(len(hot(chosen)[0]) - len(hot(chosen)[1])) <= 4


def test_statistics_that_do_not_fit_are_told_and_not_used(model: Path, fixtures: Path) -> None:
    shutil.rmtree(model.parent / "activation")
    shutil.copytree(fixtures / "relu-llama-activation", model.parent / "activation")
    chosen = choose(model)
    assert "activation statistics are not used" in chosen.notices[0]
    assert chosen.captured is None


def test_a_given_file_of_powerinfers_is_used(model: Path, fixtures: Path) -> None:
    given = fixtures / "bamboo.reference.gpuidx"
    chosen = choose(model, 10**6, IndexOptions(given=given))
    assert chosen.origin == "given"
    assert hot(chosen) == [ids.tolist() for ids in load_gpu_index(given).hot]
    assert chosen.placement.head_on_gpu


def test_a_given_file_that_is_too_large_is_refused(model: Path, fixtures: Path) -> None:
    with pytest.raises(GpuIndexError, match=r"needs .* the budget leaves 1000"):
        choose(model, 1000, IndexOptions(given=fixtures / "bamboo.reference.gpuidx"))


def test_a_given_file_of_another_model_is_refused(model: Path, fixtures: Path, tmp_path: Path) -> None:
    with pytest.raises(GpuIndexError, match="12 layers, this one has 2"):
        choose(model, 10**6, IndexOptions(given=fixtures / "relu-llama.reference.gpuidx"))
    choose(model)
    ours = model.with_name("m.gguf.generated.gpuidx")
    other = Path(shutil.copy(fixtures / "bamboo.q4.powerinfer.gguf", tmp_path / "other.gguf"))
    with pytest.raises(GpuIndexError, match="another model file"):
        choose(other, 10**6, IndexOptions(given=ours))


def test_a_given_file_is_refused_where_it_is_damaged(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_bytes(b"PWRI")
    with pytest.raises(GpuIndexError, match="cannot be used as a GPU index"):
        choose(model, 10**6, IndexOptions(given=broken))


def test_a_given_file_with_neurons_that_cannot_be_parted_is_refused(fixtures: Path, tmp_path: Path) -> None:
    model = fixtures / "llama_cpp" / "llama-q8_0.gguf"
    with open_gguf(model) as file:
        config = read_config(file)
    some = np.arange(33, dtype=np.int32)
    index = GpuIndex((some,) * config.n_layer, config.n_ff, 1)
    write_gpu_index(tmp_path / "index", index)
    with pytest.raises(GpuIndexError, match="groups of 32"):
        choose(model, 10**8, IndexOptions(given=tmp_path / "index"), Sparsity.DENSE)
    write_gpu_index(tmp_path / "index", replace(index, hot=(some[:32],) * config.n_layer))
    chosen = choose(model, 10**8, IndexOptions(given=tmp_path / "index"), Sparsity.DENSE)
    assert chosen.placement.n_hot == 32 * config.n_layer


_CHOOSE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_index_choice import choose
print(choose(Path({model!r})).origin)
"""


def test_two_processes_at_once_both_succeed(model: Path) -> None:
    code = _CHOOSE.format(tests=str(Path(__file__).parent), model=str(model))
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "XDG_CACHE_HOME": str(model.parent / "cache")}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert set(outputs) <= {"solved", "kept"}
    assert choose(model).origin == "kept"
    assert sorted(path.name for path in model.parent.iterdir() if path.suffix == ".gpuidx") == [
        "m.gguf.generated.gpuidx"
    ]


def test_a_quantised_twin_has_an_index_of_its_own(model: Path, fixtures: Path) -> None:
    twin = Path(shutil.copy(fixtures / "bamboo.q4.powerinfer.gguf", model.with_name("m.q4.gguf")))
    choose(model)
    chosen = choose(twin)
    assert chosen.path == model.with_name("m.q4.gguf.generated.gpuidx")
    assert chosen.captured is not None
