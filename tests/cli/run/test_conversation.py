"""Conversations through pipes over a scripted model: chats by template, and plain dialogues with reverse prompts."""

from __future__ import annotations

import os
import signal

import pytest
from helpers_fake_llm import BOS, FakeLLM, Runner


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


def chat_llm(**options: object) -> FakeLLM:
    return FakeLLM(replies=["one", "two", "three"], chat_template=object(), **options)  # type: ignore[arg-type]


def roles(messages: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages]


def text_of(ids: list[int]) -> str:
    return "".join("^" if token == BOS else chr(token) for token in ids)


# Chat


def test_a_chat_keeps_its_history_until_the_input_ends(runner: Runner) -> None:
    llm = chat_llm()
    outcome = runner(llm, "-i", "--system", "be brief", stdin=b"hello\n\nagain\n")
    assert (outcome.code, outcome.out) == (0, "one\ntwo\n")
    assert roles(llm.chats[0]) == [("system", "be brief"), ("user", "hello")]
    assert roles(llm.chats[1]) == [*roles(llm.chats[0]), ("assistant", "one"), ("user", "again")]
    assert outcome.err.splitlines()[-1].startswith("prompt ")


def test_a_prompt_is_the_first_message(runner: Runner) -> None:
    llm = chat_llm()
    runner(llm, "-i", "-p", "first", stdin=b"second")
    assert [roles(chat)[-1] for chat in llm.chats] == [("user", "first"), ("user", "second")]


def test_exit_leaves_and_clear_forgets(runner: Runner) -> None:
    llm = chat_llm()
    outcome = runner(llm, "-i", "--system", "s", stdin=b"a\n/clear\nb\n/exit\nc\n")
    assert outcome.out == "one\ntwo\n"
    assert [roles(chat) for chat in llm.chats] == [[("system", "s"), ("user", text)] for text in "ab"]


def test_lines_are_joined_by_a_backslash(runner: Runner) -> None:
    llm = chat_llm()
    runner(llm, "-i", stdin=b"a\\\nb\nc\\\n")
    assert [roles(chat)[-1][1] for chat in llm.chats] == ["a\nb", "c"]


def test_multiline_input_ends_with_a_backslash(runner: Runner) -> None:
    llm = chat_llm()
    runner(llm, "-i", "--multiline-input", stdin=b"a\nb\\\nc\n")
    assert [roles(chat)[-1][1] for chat in llm.chats] == ["a\nb", "c"]


def test_an_interrupt_ends_the_answer_and_not_the_chat(runner: Runner) -> None:
    answers = iter(range(100))

    def before_piece(k: int) -> None:
        if k == 1 and next(answers) == 0:
            os.kill(os.getpid(), signal.SIGINT)

    llm = chat_llm(before_piece=before_piece)
    outcome = runner(llm, "-i", stdin=b"a\nb\n")
    assert outcome.out == "o\ntwo\n"
    assert "[interrupted]" in outcome.err
    assert roles(llm.chats[1])[1] == ("assistant", "o")
    assert outcome.code == 0


def test_sigterm_ends_the_chat_with_the_timings(runner: Runner) -> None:
    llm = chat_llm(before_piece=lambda k: os.kill(os.getpid(), signal.SIGTERM) if k == 1 else None)
    outcome = runner(llm, "-i", stdin=b"a\nb\n")
    assert (outcome.code, outcome.out) == (143, "o\n")
    assert outcome.err.splitlines()[-1].startswith("prompt ")


def test_a_message_beyond_the_context_is_refused_and_forgotten(runner: Runner) -> None:
    llm = chat_llm(context_length=20)
    outcome = runner(llm, "-i", stdin=b"%s\nb\n" % (b"x" * 50))
    assert "the prompt has 51 tokens, the context holds 20; /clear starts anew" in outcome.err
    assert roles(llm.chats[1]) == [("user", "b")]
    assert outcome.code == 0


def test_input_that_is_not_utf8_is_an_error(runner: Runner) -> None:
    outcome = runner(chat_llm(), "-i", stdin=b"\xff\n")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == "powerinfer-run: error: standard input: is not UTF-8 text"


# Plain


def test_a_reverse_prompt_hands_over(runner: Runner) -> None:
    llm = FakeLLM(replies=["Hi.\nUser: no", "Bye.\nUser:"])
    outcome = runner(llm, "-i", "-r", "User:", "-p", "Talk.\n", stdin=b"and you?\n")
    assert outcome.out == "Hi.\nUser:Bye.\nUser:"
    assert [text_of(prompt) for prompt in llm.prompts] == ["^Talk.\n", "^Talk.\nHi.\nUser:and you?\n"]
    assert outcome.code == 0


def test_reverse_prompts_go_before_a_chat_template(runner: Runner) -> None:
    llm = chat_llm()
    runner(llm, "-i", "-r", "User:", stdin=b"")
    assert not llm.chats


def test_end_of_text_hands_over_with_the_first_reverse_prompt(runner: Runner) -> None:
    llm = FakeLLM(replies=["Hi."])
    runner(llm, "-i", "-r", "U:", "-r", "V:", "-p", "a", stdin=b"b\n")
    assert text_of(llm.prompts[1]) == "^aHi.U:b\n"


def test_prefix_suffix_and_begin_token_surround_the_input(runner: Runner) -> None:
    llm = FakeLLM(replies=["x"])
    argv = ["-i", "-p", "a", "-e", "--in-prefix", r"<\t", "--in-suffix", ">", "--in-prefix-bos"]
    runner(llm, *argv, stdin=b"b\n")
    assert text_of(llm.prompts[1]) == "^ax^<\tb\n>"


def test_an_input_that_ends_in_a_slash_goes_without_its_line_break(runner: Runner) -> None:
    llm = FakeLLM(replies=["x"])
    runner(llm, "-i", "-p", "a", stdin=b"b/\n")
    assert text_of(llm.prompts[1]) == "^axb"


def test_an_empty_line_lets_the_model_go_on(runner: Runner) -> None:
    llm = FakeLLM(replies=["x", "y"])
    outcome = runner(llm, "-i", "-p", "a", "-n", "1", stdin=b"\n")
    assert outcome.out == "xy"
    assert text_of(llm.prompts[1]) == "^ax"


def test_interactive_first_waits_for_input(runner: Runner) -> None:
    llm = FakeLLM(replies=["x"])
    runner(llm, "--interactive-first", "-p", "a", stdin=b"b\n")
    assert [text_of(prompt) for prompt in llm.prompts] == ["^ab\n"]


def test_keep_counts_from_the_first_prompt(runner: Runner) -> None:
    llm = FakeLLM(replies=["x"])
    runner(llm, "-i", "-p", "abc", "--keep", "-1", stdin=b"more\n")
    assert llm.keeps == [4, 4]


def test_an_input_beyond_the_context_is_left_out(runner: Runner) -> None:
    llm = FakeLLM(replies=["xyz"], context_length=20)
    outcome = runner(llm, "-i", "-p", "a", stdin=b"%s\nb\n" % (b"y" * 50))
    assert (outcome.code, outcome.out) == (0, "xyzxyz")
    assert outcome.err.count("the prompt has 56 tokens, the context holds 20; this input is left out\n") == 1
    assert [text_of(prompt) for prompt in llm.prompts] == ["^a", "^axyzb\n"]
    assert outcome.err.splitlines()[-1].startswith("prompt ")


def test_a_prompt_beyond_the_context_is_an_error_of_the_command_line(runner: Runner) -> None:
    outcome = runner(FakeLLM(context_length=20), "-i", "-p", "a" * 30, stdin=b"b\n")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.endswith("powerinfer-run: error: the prompt has 31 tokens, the context holds 20\n")


def test_with_keep_older_text_makes_room_for_an_input(runner: Runner) -> None:
    llm = FakeLLM(replies=["0123456789", "x"], context_length=16)
    outcome = runner(llm, "-i", "-p", "ab", "--keep", "2", stdin=b"cdef\n%s\ng\n" % (b"y" * 50))
    # ^ab0123456789cdef. is 18 tokens: of the 11 behind ^a, the 6 older go. 52 more than the kept never fit.
    assert [text_of(prompt) for prompt in llm.prompts] == ["^ab", "^a56789cdef\n", "^a56789cdef\nxg\n"]
    assert outcome.err.count("this input is left out") == 1
    assert outcome.code == 0


def test_control_tokens_are_made_of_flags_but_not_of_input(runner: Runner) -> None:
    llm = FakeLLM(replies=["x"])
    runner(llm, "-i", "-p", "a", "--in-suffix", "</s>", stdin=b"</s>\n")
    assert llm.prompts[1][-1] == 2
    assert llm.prompts[1].count(2) == 1
