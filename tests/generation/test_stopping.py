"""Stop strings against a naive search over the whole text, for every way of cutting it into pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powerinfer_py.generation.stopping import StopMatcher


def naive_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text before the first stop to be completed, and that stop: the definition, one character at a time."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    emitted = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    return emitted, matcher.matched


ALPHABET = "abé"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=4)
PIECES = st.lists(st.text(ALPHABET, max_size=4), max_size=12)


@settings(max_examples=1500, deadline=None)
@given(pieces=PIECES, stops=STOPS)
def test_any_cut_gives_what_a_search_over_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    assert run(pieces, stops) == naive_stop("".join(pieces), stops)


@settings(max_examples=500, deadline=None)
@given(pieces=PIECES, stops=STOPS)
def test_nothing_is_held_back_that_cannot_begin_a_stop_string(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = emitted = ""
    for piece in pieces:
        seen += piece
        emitted += matcher.push(piece)
        if matcher.stopped:
            break
        held = seen[len(emitted) :]
        assert seen.startswith(emitted)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_spans_pieces_and_nothing_follows_it() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert [matcher.push(piece) for piece in ["Hi.", "\n", "Us", "er: more", "and more"]] == ["Hi.", "", "", "", ""]
    assert (matcher.stopped, matcher.matched, matcher.flush()) == (True, "\nUser:", "")


def test_an_unfinished_stop_string_is_text_after_all() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a<en") == "a"
    assert matcher.push("v") == "<env"
    assert matcher.push("<e") == ""
    assert matcher.flush() == "<e"
    assert not matcher.stopped


def test_of_stops_that_end_together_the_longest_wins() -> None:
    assert run(["x", "a", "b", "c"], ["bc", "abc"]) == ("x", "abc")


def test_the_stop_completed_first_wins_even_inside_a_longer_one() -> None:
    assert run(["abcd"], ["abcd", "bc"]) == run(list("abcd"), ["abcd", "bc"]) == ("a", "bc")


def test_a_stop_that_overlaps_itself() -> None:
    assert run(list("aab"), ["aab"]) == ("", "aab")
    assert run(list("aaab"), ["aab"]) == ("a", "aab")


def test_without_stop_strings_text_passes_at_once() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc") == "abc"
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
