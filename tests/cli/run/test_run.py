"""The paths of `powerinfer-run` over a scripted model: what goes where, in which order, with which exit code."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers_fake_llm import BOS, FakeLLM, Runner
from helpers_models import edited_copy

from powerinfer_py.cli import run
from powerinfer_py.cli.run import execution, prompts


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capsys)


def ids(text: str) -> list[int]:
    return [BOS, *map(ord, text)]


def test_text_alone_goes_to_standard_output(runner: Runner) -> None:
    llm = FakeLLM()
    outcome = runner(llm, "-p", "hi", "-s", "5")
    assert (outcome.code, outcome.out) == (0, "abc def")
    assert llm.prompts == [ids("hi")]
    assert llm.closed
    lines = outcome.err.splitlines()
    assert lines[0] == "a notice"
    assert lines[1] == "GPU memory: a line"
    assert lines[2] == r"model Fake\x1b[31m (llama), sparsity dense, context 200 tokens"
    assert lines[3] == "KV cache f16, 3.0 MiB for 1 x 200 tokens"
    assert lines[4] == "seed 5"
    assert lines[-1] == "prompt 3 tokens"


def test_a_drawn_seed_is_printed_and_is_the_one_used(runner: Runner) -> None:
    seen = set()
    for _ in range(3):
        llm = FakeLLM()
        outcome = runner(llm, "-p", "hi")
        assert f"seed {llm.params[0].seed}\n" in outcome.err
        seen.add(llm.params[0].seed)
    assert len(seen) == 3


def test_flags_reach_the_sampling_parameters(runner: Runner) -> None:
    llm = FakeLLM()
    argv = "-n 3 --temp 0.5 --top_k 7 --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1 --repeat-last-n 9"
    argv += " --presence-penalty 0.2 --frequency-penalty 0.3 -l 5+1.5 --logit-bias 6-inf --ignore-eos --stop X -r Y"
    runner(llm, *argv.split(), "--keep", "2", "-p", "hi")
    params = llm.params[0]
    assert (params.max_tokens, params.temperature, params.top_k, params.top_p, params.min_p) == (3, 0.5, 7, 0.5, 0.1)
    assert (params.repeat_penalty, params.repeat_last_n) == (1.1, 9)
    assert (params.presence_penalty, params.frequency_penalty) == (0.2, 0.3)
    assert params.logit_bias == {5: 1.5, 6: -float("inf")}
    assert params.ignore_eos
    assert params.stop == ("X", "Y")
    assert llm.keeps == [2]


def test_no_tokens_evaluates_the_prompt_and_prints_nothing(runner: Runner) -> None:
    llm = FakeLLM()
    outcome = runner(llm, "-p", "hi", "-n", "0")
    assert (outcome.code, outcome.out) == (0, "")
    assert llm.stats.n_prompt == 3


@pytest.mark.parametrize("n", ["-1", "-2"])
def test_both_ways_of_saying_no_limit(runner: Runner, n: str) -> None:
    llm = FakeLLM()
    runner(llm, "-n", n)
    assert llm.params[0].max_tokens == -1


def test_an_empty_prompt_is_the_begin_token_or_an_error(runner: Runner) -> None:
    llm = FakeLLM()
    assert runner(llm).code == 0
    assert llm.prompts == [[BOS]]
    outcome = runner(FakeLLM(has_bos=False))
    assert outcome.code == 2
    assert "the prompt is empty" in outcome.err


def test_prompts_from_standard_input_and_files(runner: Runner, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo\n")
    llm = FakeLLM()
    outcome = runner(llm, "last", "-p", "first", "-f", "-", "--prompts-file", str(lines), stdin="é\n\n".encode())
    assert llm.prompts == [ids("first"), ids("last"), ids("é\n"), ids("one"), ids("two")]
    assert outcome.out == "abc def\n" * 5


def test_only_a_line_feed_ends_a_line_of_prompts(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes("a\u2028b\fc\x85d\x1ee\r\n\r\nf\rg\n".encode())
    llm = FakeLLM()
    assert runner(llm, "--prompts-file", str(path)).code == 0
    assert llm.prompts == [ids("a\u2028b\fc\x85d\x1ee"), ids("f\rg")]


def test_a_byte_order_mark_is_no_part_of_a_prompt(runner: Runner, tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n")
    llm = FakeLLM()
    runner(llm, "-f", str(path), "-f", "-", "--prompts-file", str(path), stdin=path.read_bytes())
    assert llm.prompts == [ids("one")] * 3


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\n"])
def test_a_file_without_prompts_is_an_error(runner: Runner, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(data)
    for name, place in ((str(path), str(path)), ("-", "standard input")):
        llm = FakeLLM()
        outcome = runner(llm, "-p", "a", "--prompts-file", name, stdin=data)
        assert (outcome.code, outcome.out, llm.prompts) == (1, "", [])
        assert outcome.err == f"powerinfer-run: error: {place}: holds no prompt\n"


def test_a_prompt_may_begin_with_a_dash(runner: Runner) -> None:
    llm = FakeLLM()
    runner(llm, "-p", "- eggs", "--prompt=-n", "-p", "---", "--", "-x")
    assert llm.prompts == [ids("- eggs"), ids("-n"), ids("---"), ids("-x")]


def test_escapes_only_with_their_flag(runner: Runner) -> None:
    llm = FakeLLM()
    runner(llm, "-p", r"a\nb\xc3\xa9\q", "--stop", r"\n")
    runner(llm, "-e", "-p", r"a\nb\xc3\xa9\q", "--stop", r"\n")
    assert llm.prompts == [ids(r"a\nb\xc3\xa9\q"), ids("a\nbé\\q")]
    assert [params.stop for params in llm.params] == [(r"\n",), ("\n",)]


def test_control_tokens_in_a_prompt_only_with_their_flag(runner: Runner) -> None:
    llm = FakeLLM()
    runner(llm, "-p", "</s>")
    runner(llm, "-p", "</s>", "--parse-special")
    assert llm.prompts == [ids("</s>"), [BOS, 2]]


def test_verbose_prompt_lists_tokens_safely(runner: Runner) -> None:
    outcome = runner(FakeLLM(), "-p", "a\x1b", "--verbose-prompt")
    assert "prompt: 3 tokens\n" in outcome.err
    assert "\x1b" not in outcome.err


def test_several_results_are_printed_whole_and_in_order(runner: Runner) -> None:
    llm = FakeLLM(replies=["one", "two\n", "three", "four"])
    outcome = runner(llm, "-p", "a", "-p", "b", "--parallel", "2", "-s", "7")
    assert outcome.out == "one\ntwo\nthree\nfour\n"
    headers = [line for line in outcome.err.splitlines() if line.startswith("==")]
    assert headers[0] == "== prompt 1 of 2, result 1 of 2: 'a' =="
    assert headers[3] == "== prompt 2 of 2, result 2 of 2: 'b' =="


def test_json_is_one_object_and_nothing_else(runner: Runner) -> None:
    llm = FakeLLM(replies=["one", "two"])
    outcome = runner(llm, "-p", "a", "--parallel", "2", "-s", "7", "--json")
    result = json.loads(outcome.out)
    assert outcome.out.count("\n") == 1
    assert list(result) == [
        "model",
        "name",
        "architecture",
        "sparsity",
        "context_length",
        "kv_cache",
        "seed",
        "prompts",
        "completions",
        "stats",
    ]
    assert (result["model"], result["seed"], result["prompts"]) == ("fake.gguf", 7, ["a"])
    assert [(c["text"], c["seed"], c["finish_reason"]) for c in result["completions"]] == [
        ("one", 7, "eos"),
        ("two", 8, "eos"),
    ]
    assert result["kv_cache"] == {"bytes": 3 << 20}
    assert result["stats"] == {"prompt_tokens": 4}


def test_json_of_a_single_result_holds_its_text_once(runner: Runner) -> None:
    result = json.loads(runner(FakeLLM(), "--json", "-p", "a").out)
    assert [c["text"] for c in result["completions"]] == ["abc def"]


def test_a_stop_string_ends_the_text(runner: Runner) -> None:
    assert runner(FakeLLM(), "-p", "a", "--stop", "c d").out == "ab"


# Signals


def interrupt_at(k: int, number: signal.Signals = signal.SIGINT) -> FakeLLM:
    def before_piece(i: int) -> None:
        if i == k:
            os.kill(os.getpid(), number)

    return FakeLLM(before_piece=before_piece)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_text_and_prints_the_timings(runner: Runner, number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    outcome = runner(interrupt_at(3, number), "-p", "hi")
    assert (outcome.code, outcome.out) == (code, "abc")
    assert "[interrupted]" in outcome.err
    assert outcome.err.endswith("prompt 3 tokens\n")
    assert signal.getsignal(number) is before


def test_an_interrupted_result_is_still_one_json_object(runner: Runner) -> None:
    outcome = runner(interrupt_at(3), "-p", "hi", "--json")
    assert outcome.code == 130
    assert json.loads(outcome.out)["completions"][0]["finish_reason"] == "cancelled"


def test_a_second_interrupt_does_not_wait_for_the_text(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    class LeftError(Exception):
        pass

    def leave(code: int) -> None:
        raise LeftError(code)

    monkeypatch.setattr(os, "_exit", leave)

    def before_piece(i: int) -> None:
        if i == 1:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(LeftError, match="130"):
        runner(FakeLLM(before_piece=before_piece), "-p", "hi")


def test_an_interrupt_while_loading_ends_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(_model: Path, _args: object) -> FakeLLM:
        os.kill(os.getpid(), signal.SIGINT)
        return FakeLLM()

    monkeypatch.setattr(execution, "load_llm", load)
    assert run.main(["-m", "x", "-p", "hi"]) == 130
    assert capsys.readouterr().out == ""


# User errors


def test_a_text_without_end_is_refused(runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "MAX_TEXT_BYTES", 1 << 20)
    path, pipe = tmp_path / "prompt.txt", tmp_path / "pipe"
    path.write_bytes(b"a" * ((1 << 20) + 1))
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"from a pipe",))
    writer.start()
    llm = FakeLLM()
    assert runner(llm, "-f", str(pipe)).code == 0
    writer.join()
    assert llm.prompts == [ids("from a pipe")]
    for argv in (["-f", "/dev/zero"], ["-f", str(path)], ["--prompts-file", str(path)], ["-f", "-"]):
        outcome = runner(FakeLLM(), *argv, stdin=path.read_bytes())
        place = "standard input" if argv[-1] == "-" else argv[-1]
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err == f"powerinfer-run: error: {place}: holds more than 1 MiB, which no context does\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-i", "--json"], "--json cannot be combined"),
        (["-i", "-p", "a", "-p", "b"], "one prompt"),
        (["-i", "--parallel", "2"], "one prompt"),
        (["-i", "-f", "-"], "standard input"),
        (["--system", "x"], "--system needs --interactive"),
        (["-i", "--system", "x", "-r", "y"], "--system belongs to a chat"),
        (["-i", "--system", "x"], "--system needs a chat template"),
        (["--gpu-index", "x", "--reset-gpu-index"], "contradicts"),
        (["-e", "-p", r"\xff"], "UTF-8"),
        (["-p", "\udcff"], "not valid UTF-8"),
    ],
)
def test_contradictions_are_usage_errors(runner: Runner, argv: list[str], message: str) -> None:
    outcome = runner(FakeLLM(), *argv)
    last = outcome.err.splitlines()[-1]
    assert (outcome.code, outcome.out) == (2, "")
    assert last.startswith("powerinfer-run: error: ")
    assert message in last


@pytest.mark.parametrize(
    ("argv", "stdin", "message"),
    [
        (["-f", "/nonexistent/prompt"], b"", "/nonexistent/prompt: cannot be read: No such file or directory"),
        (["-f", "a\0b"], b"", "cannot be read"),
        (["-f", "-"], b"\xff", "standard input: is not UTF-8 text (at byte 0)"),
        (["-f", "-"], b"\xef\xbb\xbfab\xff", "standard input: is not UTF-8 text (at byte 5)"),
        (["-p", "x" * 300], b"", "the prompt has 301 tokens, the context holds 200"),
    ],
)
def test_errors_are_one_line_and_code_1(runner: Runner, argv: list[str], stdin: bytes, message: str) -> None:
    outcome = runner(FakeLLM(), *argv, stdin=stdin)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.splitlines()[-1].startswith("powerinfer-run: error: ")
    assert message in outcome.err.splitlines()[-1]


def test_notices_and_the_table_of_memory_go_to_standard_error(runner: Runner) -> None:
    done = runner(FakeLLM(), "-p", "a")
    assert "a notice\nGPU memory: a line\n" in done.err
    assert "line" not in done.out


def test_without_a_model_the_default_one_or_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from powerinfer_py.generation import default_model

    loaded = []

    def load(model: Path, _args: object) -> FakeLLM:
        loaded.append(model)
        return FakeLLM()

    monkeypatch.setattr(execution, "load_llm", load)
    monkeypatch.setattr(default_model, "default_model", lambda: Path("packaged.gguf"))
    assert run.main(["-p", "a"]) == 0
    assert loaded == [Path("packaged.gguf")]
    monkeypatch.setattr(default_model, "default_model", lambda: None)
    capsys.readouterr()
    assert run.main(["-p", "a"]) == 1
    assert "name a file with -m" in capsys.readouterr().err


def test_check_tensors_ends_the_command_by_name(
    fixtures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(name: str, data: np.ndarray) -> np.ndarray:
        return np.full_like(data, 0xFF) if name == "blk.1.attn_norm.weight" else data

    good = fixtures / "bamboo.q4.powerinfer.gguf"
    bad = edited_copy(good, tmp_path / "nan.gguf", edit)
    argv = ["-p", "Hello", "-n", "1", "-t", "1", "--check-tensors", "-m"]
    assert run.main([*argv, str(good)]) == 0
    capsys.readouterr()
    assert run.main([*argv, str(bad)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "blk.1.attn_norm.weight: 64 NaN weights, the first is 0" in captured.err.splitlines()[-1]
