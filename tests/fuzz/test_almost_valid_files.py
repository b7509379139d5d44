"""Files that are almost valid, by hypothesis, and what fuzzing has found: a documented error or a file, no more."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from fuzz.strategies import almost_valid, gpu_indexes, safetensors_files, valid_files
from fuzz.targets import CORPUS, TARGETS, load_index, read_model_file, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from powerinfer_py.convert.checkpoint.safetensors_file import read_safetensors
from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf import open_gguf

bounded = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@bounded
@given(valid_files())
def test_valid_files_open(data: bytes) -> None:
    with open_gguf(written(data)) as file:
        assert file.n_bytes == len(data)


@bounded
@given(almost_valid(valid_files()))
def test_almost_valid_model_files(data: bytes) -> None:
    read_model_file(data)


@bounded
@given(gpu_indexes() | almost_valid(gpu_indexes()))
def test_almost_valid_gpu_indexes(data: bytes) -> None:
    load_index(data)


@bounded
@given(safetensors_files())
def test_almost_valid_safetensors(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, suppress(FileFormatError):
        path = Path(folder) / "model.safetensors"
        path.write_bytes(data)
        for tensor in read_safetensors(path).values():
            assert tensor.offset + tensor.n_bytes <= len(data)


@bounded
@given(st.data())
def test_almost_valid_vocabularies(data: st.DataObject) -> None:
    whole = (CORPUS / "tokenizer" / "sentencepiece.bin").read_bytes()
    TARGETS["tokenizer"](data.draw(almost_valid(st.just(whole))))


FOUND = [(name, path) for name in TARGETS for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize(("name", "path"), FOUND, ids=[f"{name}/{path.name}" for name, path in FOUND])
def test_the_corpus(name: str, path: Path) -> None:
    TARGETS[name](path.read_bytes())


def test_there_is_a_corpus_for_every_target() -> None:
    assert {name for name, _ in FOUND} == set(TARGETS)
