"""What is fuzzed: functions of a file's bytes that either return or raise a documented error; all else is a find."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from powerinfer_py.errors import PowerInferError
from powerinfer_py.gguf import open_gguf
from powerinfer_py.placement.gpuidx import GpuIndexError, load_gpu_index
from powerinfer_py.tokenizer import load_tokenizer

CORPUS = Path(__file__).with_name("corpus")
_FOLDER = tempfile.TemporaryDirectory(prefix="powerinfer-fuzz-")
_PATH = Path(_FOLDER.name) / "file"
TEXTS = ("Hello, world!", "é\0▁ <s>", "aaaaaaaaaaaaaaaa")


def written(data: bytes) -> Path:
    """The bytes as a file; the same path each time."""
    _PATH.write_bytes(data)
    return _PATH


def read_model_file(data: bytes) -> None:
    """Every tensor and every key of what opens."""
    with suppress(PowerInferError), open_gguf(written(data)) as file:
        for name, info in file.tensors.items():
            assert file.tensor_data(name).size == info.n_bytes
        for key, entry in file.entries.items():
            assert file.entries[key].n_bytes == entry.n_bytes


def load_vocabulary(data: bytes) -> None:
    """What is encoded and decoded again is the text, or a part of it where tokens are missing."""
    with suppress(PowerInferError), open_gguf(written(data)) as file:
        tokenizer = load_tokenizer(file.metadata)
        for text in TEXTS:
            with suppress(PowerInferError):
                tokenizer.decode(tokenizer.encode(text))


def load_index(data: bytes) -> None:
    """An index that loads agrees with itself."""
    with suppress(GpuIndexError):
        index = load_gpu_index(written(data))
        for hot in index.hot:
            assert not hot.size or (hot.min() >= 0 and hot.max() < index.n_ff and (hot[1:] > hot[:-1]).all())


TARGETS: dict[str, Callable[[bytes], None]] = {
    "reader": read_model_file,
    "tokenizer": load_vocabulary,
    "gpuidx": load_index,
}
