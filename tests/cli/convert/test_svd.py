"""`powerinfer-convert --predictor svd`, from checkpoints and from GGUF files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers_checkpoints import FIXTURES
from helpers_predictable import write_predictable

from powerinfer_py import LLM
from powerinfer_py.cli import convert
from powerinfer_py.gguf import GGMLType, open_gguf
from powerinfer_py.predictor.recall import RecallCounter

BAMBOO = str(FIXTURES / "bamboo")
IDS = np.random.default_rng(5).integers(3, 512, 100).tolist()


def recall_and_shares(path: Path) -> tuple[float, float, float]:
    """Recall, shares predicted and fired, over all layers."""
    with LLM(path, sparsity="exact", threads=1) as llm:
        counter = RecallCounter(llm.engine)
        llm.logits(IDS, observer=counter)
    neurons, fired = (sum(getattr(layer, name) for layer in counter.layers) for name in ("neurons", "fired"))
    predicted, both = (sum(getattr(layer, name) for layer in counter.layers) for name in ("predicted", "both"))
    return both / fired, predicted / neurons, fired / neurons


@pytest.mark.parametrize("name", ["relu-llama", "opt"])
def test_a_checkpoint_gives_what_its_file_gives(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    direct, dense, later = (tmp_path / f"{stage}.gguf" for stage in ("direct", "dense", "later"))
    svd = ["--predictor", "svd", "--predictor-rank", "64"]
    assert convert.main([str(FIXTURES / name), "--outfile", str(direct), *svd]) == 0
    # F16 weights as the checkpoint's own are: the rows are the same numbers.
    assert convert.main([str(FIXTURES / name), "--dense", "--outfile", str(dense)]) == 0
    assert convert.main([str(dense), "--outfile", str(later), *svd, "--activation", "relu"]) == 0
    assert ("no linear map" in capsys.readouterr().err) == (name == "opt")
    with open_gguf(direct) as first, open_gguf(later) as second:
        assert first.get_float("powerinfer.sparse_threshold") == 0.0
        assert set(first.tensors) == set(second.tensors)
        assert first.tensors["blk.1.fc2.weight"].shape == (1024, 64)
        for tensor in ("blk.0.fc1.weight", "blk.1.fc2.weight"):
            assert np.array_equal(first.tensor_data(tensor), second.tensor_data(tensor))
    recall, predicted, fired = recall_and_shares(direct)
    # Half of the directions and two standard deviations: most of what fires, and not everything.
    assert recall > 0.9
    assert fired < predicted < 0.95


def test_it_replaces_predictors_and_is_quantised_with_the_rest(tmp_path: Path) -> None:
    model, out = str(FIXTURES / "bamboo.powerinfer.gguf"), tmp_path / "out.gguf"
    options = ["--predictor", "svd", "--predictor-budget", "20%", "--outtype", "q4_0"]
    assert convert.main([model, "--outfile", str(out), *options]) == 0
    with open_gguf(out) as file, open_gguf(model) as before:
        assert set(file.tensors) == set(before.tensors)
        assert file.tensors["blk.0.fc1.weight"].ggml_type is GGMLType.Q4_0
        predictors = [info for name, info in file.tensors.items() if ".fc" in name]
        allowed = 0.2 * sum(info.n_bytes for name, info in before.tensors.items() if ".fc" not in name)
        assert 0.5 * allowed < sum(2 * info.n_weights for info in predictors) <= allowed
    with LLM(out, threads=1) as llm:
        assert llm.sparsity == "predictor"
        assert np.isfinite(llm.logits(IDS[:20])).all()


def test_a_fatrelu_file_moves_the_threshold_into_the_rows(tmp_path: Path) -> None:
    model, out = write_predictable(tmp_path / "m.gguf", magic="GGUF"), tmp_path / "out.gguf"
    options = ["--predictor", "svd", "--predictor-rank", "128", "--activation", "fatrelu", "--fatrelu-threshold", "0.5"]
    assert convert.main([str(model), "--outfile", str(out), *options]) == 0
    recall, predicted, fired = recall_and_shares(out)
    assert recall > 0.98
    # All directions are there, but one length has to stand for the norm's, which varies.
    assert predicted < 3 * fired


def test_a_dry_run_names_the_predictors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        convert.main([BAMBOO, "--predictor", "svd", "--predictor-rank", "64", "--outfile", str(out), "--dry-run"]) == 0
    )
    assert "blk.1.fc2.weight" in capsys.readouterr().out
    assert not out.exists()


def test_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    silu = str(FIXTURES / "llama_cpp" / "llama.gguf")
    for arguments, message in (
        ([silu, "--predictor", "svd"], "--activation"),
        ([BAMBOO, "--predictor", "svd", "--predictor-rank", "63"], "even number"),
        ([BAMBOO, "--predictor", "svd", "--predictor-budget", "0.0001%"], "raise it"),
        ([BAMBOO, "--predictor", "svd", "--predictor-budget", "200%"], "share"),
        ([BAMBOO, "--predictor", "svd", "--predictor-budget", "0"], "share"),
    ):
        assert convert.main([*arguments, "--outfile", str(tmp_path / "out")]) == 1, arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [BAMBOO, f"{BAMBOO}-predictor", "--predictor", "svd"],
        [BAMBOO, "--predictor", "svd", "--dense"],
        [BAMBOO, "--predictor", "svd", "--vocab-only"],
        [BAMBOO, "--predictor-rank", "64"],
        [BAMBOO, "--predictor-budget", "0.1"],
        [BAMBOO, "--predictor", "svd", "--predictor-rank", "many"],
        [BAMBOO, "--predictor", "magic"],
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        convert.main(arguments)
    assert caught.value.code == 2
