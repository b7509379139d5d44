"""Incremental decoding against decoding as a whole, for real texts and for any ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_vocabulary import fixture_metadata, sentencepiece_metadata
from hypothesis import given, settings
from hypothesis import strategies as st

from powerinfer_py.tokenizer import load_tokenizer

FIXTURES = Path(__file__).parent.parent / "fixtures"
NAMES = ("relu-llama", "relu-falcon")
TOKENIZERS = {name: load_tokenizer(fixture_metadata(FIXTURES, name)) for name in NAMES}
IDS = st.lists(st.integers(0, 511), max_size=30)


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, deadline=None, max_examples=200)
@given(text=st.text())
def test_streaming_equals_decoding_of_text(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    stream = tokenizer.stream(first=True)
    ids = tokenizer.encode(text, add_bos=False)
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert stream.flush() == ""
    # Whole characters only: nothing of a valid text is ever shown as damaged.
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("skip_special", [True, False])
@settings(derandomize=True, deadline=None, max_examples=200)
@given(ids=IDS)
def test_streaming_equals_decoding_of_any_ids(name: str, skip_special: bool, ids: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    stream = tokenizer.stream(first=True, skip_special=skip_special)
    streamed = "".join([stream.push(token) for token in ids] + [stream.flush()])
    assert streamed == tokenizer.decode(ids, skip_special=skip_special)
    whole = b"".join(tokenizer.token_bytes(token, special=not skip_special) for token in ids)
    if tokenizer.strips_first_space:
        whole = whole.removeprefix(b" ")
    assert streamed == whole.decode("utf-8", "replace")


@pytest.mark.parametrize("name", NAMES)
@settings(derandomize=True, deadline=None, max_examples=200)
@given(prompt=st.text(min_size=1), generated=IDS)
def test_a_stream_continues_its_prompt(name: str, prompt: str, generated: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(prompt)
    stream = tokenizer.stream()
    streamed = "".join([stream.push(token) for token in generated] + [stream.flush()])
    assert tokenizer.decode(ids) + streamed == tokenizer.decode([*ids, *generated])


def test_a_character_comes_whole_and_late_bytes_are_replaced_once() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata())
    byte = {b: 4 + b for b in range(256)}
    stream = tokenizer.stream()
    assert [stream.push(byte[b]) for b in "😀".encode()] == ["", "", "", "😀"]
    assert [stream.push(byte[b]) for b in (0xF0, 0x9F)] == ["", ""]
    # A letter proves that the character before it never ends.
    assert stream.push(byte[ord("a")]) == "\ufffda"
    # A byte that begins nothing is damage at once; an encoded surrogate is when it is over.
    assert stream.push(byte[0xFF]) == "\ufffd"
    assert "".join(stream.push(byte[b]) for b in (0xED, 0xA0, 0x80)) == "\ufffd\ufffd\ufffd"
    assert stream.push(byte[0xE3]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_only_the_first_space_of_a_text_goes() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata())
    first, later = tokenizer.encode("abc", add_bos=False), tokenizer.encode("a", add_bos=False)
    stream = tokenizer.stream(first=True)
    # A control token contributes nothing, so the text still starts behind it.
    assert [stream.push(token) for token in [1, *first, *later]] == ["", "abc", " a"]
    assert tokenizer.stream().push(first[0]) == " abc"
    assert tokenizer.decode(first, first=False) == " abc"
