"""A model file that is written to, cut or replaced while it is in use: an error or one line, never wrong text."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faults.conftest import Workshop
from faults.zygote import Run

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.convert.checkpoint_source import CheckpointOptions, convert_checkpoint
from powerinfer_py.convert.gguf_source import convert_gguf
from powerinfer_py.convert.quantise import plan_quantisation, quantise_model
from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf import GGMLType, open_gguf
from powerinfer_py.gguf.quantisation import quantize
from powerinfer_py.runtime import engine

FIXTURES = Path(__file__).parents[1] / "fixtures"
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(FIXTURES / "bamboo.q4.powerinfer.gguf", tmp_path / "model.gguf"))


def overwrite(model: Path) -> None:
    """The last tensor's bytes, in place: size and name stay what they were."""
    with model.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))


def test_written_to_between_requests(model: Path) -> None:
    with LLM(model, threads=1) as llm:
        llm.generate([[1, 2]], GREEDY)
        overwrite(model)
        for ask in (
            lambda: llm.generate([[1, 2]], GREEDY),
            lambda: llm.logits([1]),
            lambda: [*llm.stream([1], GREEDY)],
        ):
            with pytest.raises(FileFormatError, match=r"model\.gguf: the file was changed while it was in use"):
                ask()


def test_written_to_while_text_is_streamed(model: Path) -> None:
    with LLM(model, threads=1) as llm:
        whole = llm.generate([[1, 2]], GREEDY)[0].text
        pieces = []
        with pytest.raises(FileFormatError, match="changed while it was in use"):
            for piece in llm.stream([1, 2], GREEDY):
                pieces.append(piece)
                if len(pieces) == 2:
                    overwrite(model)
        assert 2 <= len(pieces) < 12
        assert whole.startswith("".join(pieces))


def test_written_to_while_it_was_loaded(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = engine.resolve_sparsity
    monkeypatch.setattr(engine, "resolve_sparsity", lambda *given: (overwrite(model), resolve(*given))[1])
    for use_mmap in (True, False):
        with pytest.raises(FileFormatError, match="changed while it was in use"):
            LLM(model, threads=1, use_mmap=use_mmap)


def test_a_copy_in_memory_outlives_its_file(model: Path) -> None:
    with LLM(model, threads=1, use_mmap=False) as llm:
        before = llm.generate([[1, 2]], GREEDY)[0].token_ids
        overwrite(model)
        assert llm.generate([[1, 2]], GREEDY)[0].token_ids == before


def test_replaced_or_deleted(model: Path) -> None:
    """The file that was loaded is still there for whoever mapped it: the same text as before."""
    with LLM(model, threads=1) as llm:
        before = llm.generate([[1, 2]], GREEDY)[0].token_ids
        other = model.with_name("other")
        other.write_bytes(bytes(1000))
        other.replace(model)
        assert llm.generate([[1, 2]], GREEDY)[0].token_ids == before
        model.unlink()
        assert llm.generate([[1, 2]], GREEDY)[0].token_ids == before


def test_a_watch_keeps_no_file_open_for_good(model: Path) -> None:
    open_files = Path("/proc/self/fd")
    before = len([*open_files.iterdir()])
    for _ in range(20):
        open_gguf(model).close()
    assert len([*open_files.iterdir()]) <= before + 1


def convert_model(folder: Path, out: Path, progress: Callable[[int], None]) -> None:
    options = {"outtype": None, "dense": False, "activation": None, "fatrelu_threshold": None}
    convert_gguf(folder / "model.gguf", FIXTURES / "bamboo-predictor", out, **options, progress=progress)  # type: ignore[arg-type]


def convert_folder(folder: Path, out: Path, progress: Callable[[int], None]) -> None:
    convert_checkpoint(folder, None, out, CheckpointOptions(), progress=progress)


def quantise_file(folder: Path, out: Path, progress: Callable[[int], None]) -> None:
    with open_gguf(folder / "model.gguf") as file:
        quantise_model(plan_quantisation(file, GGMLType.Q4_0), out, quantize, progress)


@pytest.mark.parametrize("convert", [convert_model, convert_folder, quantise_file])
def test_written_to_while_it_is_converted(convert: Callable[..., None], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FIXTURES / "bamboo", tmp_path / "source"))
    shutil.copy(FIXTURES / "bamboo.powerinfer.gguf", folder / "model.gguf")
    out = tmp_path / "out"
    convert(folder, out, lambda _n_bytes: None)
    out.unlink()

    def progress(_n_bytes: int) -> None:
        overwrite(folder / "model.gguf")
        overwrite(folder / "model.safetensors")

    with pytest.raises(FileFormatError, match="changed while it was in use"):
        convert(folder, out, progress)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("repack", [True, False])
def test_cut_while_the_command_generates(repack: bool, model: Path, workshop: Workshop, tmp_path: Path) -> None:
    out, errors = tmp_path / "out", tmp_path / "errors"
    out.touch()
    argv = ["-m", str(model), "-p", "Hello", "--ignore-eos", "--keep", "1", "-c", "64", "--temp", "0", "-t", "1"]
    argv += [] if repack else ["--no-repack"]
    pid = workshop.zygote.start(Run("run", argv, str(errors), str(out)))
    while not out.stat().st_size:
        time.sleep(0.002)
    os.truncate(model, 4096)
    assert workshop.zygote.wait(pid) == 1
    last = errors.read_text().splitlines()[-1]
    changed, short = "the file was changed while it was in use", "the file became shorter"
    assert f"{model}: {changed}" in last or f"{model}: {short}" in last, last
    # What was written before is what an undisturbed run begins with.
    whole = tmp_path / "whole"
    shutil.copy(FIXTURES / "bamboo.q4.powerinfer.gguf", model)
    text = out.read_bytes()
    n_tokens = str(len(text) + 8)
    assert workshop.zygote.call(Run("run", [*argv, "-n", n_tokens], str(errors), str(whole))) == 0
    assert whole.read_bytes().startswith(text)


CUT = """
import os, sys
from powerinfer_py.gguf import open_gguf
from powerinfer_py.runtime import engine
from powerinfer_py.kernels.file_faults import report_file_faults
assert report_file_faults() and report_file_faults()
file = open_gguf(sys.argv[1])
data = file.tensor_data(list(file.tensors)[-1])
os.truncate(sys.argv[1], 4096)
print(data.sum())
"""


def test_the_file_is_named_on_one_line(model: Path) -> None:
    odd = model.with_name("a b\x1b[2J\n.gguf")
    model.rename(odd)
    done = subprocess.run([sys.executable, "-c", CUT, str(odd)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("powerinfer-py: error: ")
    assert "a b?[2J" in done.stderr
    assert "\x1b" not in done.stderr


OTHER = """
import ctypes, sys
from powerinfer_py.kernels.file_faults import report_file_faults
assert report_file_faults()
if sys.argv[1] == "faulthandler":
    import faulthandler; faulthandler.enable(); assert not report_file_faults()
ctypes.CDLL(None)["raise"](7)
"""


@pytest.mark.parametrize("who", ["nobody", "faulthandler"])
def test_other_faults_end_as_ever(who: str) -> None:
    """SIGBUS without a file at fault, and SIGBUS that somebody else handles."""
    done = subprocess.run([sys.executable, "-c", OTHER, who], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGBUS
    assert "powerinfer-py: error" not in done.stderr
