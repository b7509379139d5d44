from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers_predictable import FIXTURES

from powerinfer_py.errors import OptionError
from powerinfer_py.gguf import open_gguf
from powerinfer_py.predictor import windows as module
from powerinfer_py.predictor.windows import Role, cut_windows, read_texts
from powerinfer_py.tokenizer import load_tokenizer
from powerinfer_py.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with open_gguf(FIXTURES / "relu-llama.powerinfer.gguf") as file:
        return load_tokenizer(file.metadata)


def test_windows_begin_with_bos_and_never_span_texts(tokenizer: Tokenizer) -> None:
    texts = ["hello world " * 40, "another text " * 40]
    windows = cut_windows(tokenizer, texts, window=16)
    assert tokenizer.add_bos
    rebuilt = []
    for text in texts:
        ids = tokenizer.encode(text, add_bos=False)
        for start in range(0, len(ids), 15):
            part = (tokenizer.bos_id, *ids[start : start + 15])
            if len(part) >= 8:
                rebuilt.append(part)
    assert list(windows.ids) == rebuilt
    assert windows.longest == 16


def test_each_window_has_one_role_and_every_role_has_windows(tokenizer: Tokenizer) -> None:
    windows = cut_windows(tokenizer, ["some words " * 100], window=8)
    lengths = [len(window) for window in windows.ids]
    per_window = [set(part.tolist()) for part in np.split(windows.roles, np.cumsum(lengths)[:-1])]
    assert all(len(roles) == 1 for roles in per_window)
    first_ten = [roles.pop() for roles in per_window[:10]]
    assert first_ten == [Role.TRAIN] * 8 + [Role.VALIDATION, Role.CALIBRATION]
    assert len(windows.roles) == windows.n_tokens


def test_tokens_are_limited(tokenizer: Tokenizer) -> None:
    text = "some words " * 200
    assert cut_windows(tokenizer, [text], 8, max_tokens=100).n_tokens == 100
    whole, cut = cut_windows(tokenizer, [text], 8).ids, cut_windows(tokenizer, [text], 8, 100).ids
    assert cut == (*whole[:12], whole[12][:4])


def test_digest_depends_on_ids_and_cuts(tokenizer: Tokenizer) -> None:
    text = "some words " * 200
    digests = {cut_windows(tokenizer, [text], window).digest for window in (8, 9)}
    digests.add(cut_windows(tokenizer, [text + "x" * 20], 8).digest)
    assert len(digests) == 3
    assert cut_windows(tokenizer, [text], 8).digest in digests


def test_texts_of_their_own_to_stop_and_calibrate(tokenizer: Tokenizer) -> None:
    texts, apart = ["some words " * 30, "more of them " * 30], ["other words " * 40]
    windows = cut_windows(tokenizer, texts, 16, calibration_texts=apart)
    n_train = len(cut_windows(tokenizer, texts, 16).ids)
    assert windows.ids[:n_train] == cut_windows(tokenizer, texts, 16).ids
    assert windows.ids[n_train:] == cut_windows(tokenizer, apart, 16).ids
    lengths = [len(window) for window in windows.ids]
    per_window = [set(part.tolist()) for part in np.split(windows.roles, np.cumsum(lengths)[:-1])]
    assert per_window[:n_train] == [{Role.TRAIN}] * n_train
    assert per_window[n_train:][:4] == [{Role.VALIDATION}, {Role.CALIBRATION}] * 2
    assert windows.digest != cut_windows(tokenizer, [*texts, *apart], 16).digest
    with pytest.raises(OptionError, match="stopping and calibrating on separate parts takes at least 2"):
        cut_windows(tokenizer, texts, 16, calibration_texts=["a few words, but enough"])


def test_too_short(tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionError, match=r"fills 0 windows of 32 tokens; .* at least 10: "):
        cut_windows(tokenizer, ["a few words"], 32)
    with pytest.raises(OptionError, match="1 windows of 32 tokens in the 40 tokens that are used"):
        cut_windows(tokenizer, ["word " * 1000], 32, max_tokens=40)
    with pytest.raises(OptionError, match="no room"):
        cut_windows(tokenizer, ["word " * 1000], 1)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b" \n\t", "empty"), (b"\xff\xfe", "UTF-8"), (None, "cannot read")]
)
def test_bad_texts(content: bytes | None, reason: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("text")
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(OptionError, match=rf"bad\.txt: .*{reason}"):
        read_texts([good, bad])


def test_a_stream_is_read_and_one_without_end_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_STREAM_BYTES", 1 << 20)
    pipe, path = tmp_path / "pipe", tmp_path / "long.txt"
    os.mkfifo(pipe)
    path.write_bytes(b"a" * (2 << 20))
    writer = threading.Thread(target=pipe.write_bytes, args=("é\r\n".encode(),))
    writer.start()
    assert read_texts([pipe, path]) == ["é\n", "a" * (2 << 20)]
    writer.join()
    with pytest.raises(OptionError, match=r"/dev/zero: is no file and gives more than 1 MiB"):
        read_texts([Path("/dev/zero")])
