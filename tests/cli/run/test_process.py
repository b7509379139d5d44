"""`powerinfer-run` as a process on a fixture model: text, errors of the user, signals, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "powerinfer_py.cli.run"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


@pytest.fixture(scope="module")
def model(fixtures: Path) -> str:
    return str(fixtures / "relu-llama.q4.powerinfer.gguf")


def run(*argv: str, stdin: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *argv], input=stdin, capture_output=True, env=ENVIRONMENT, timeout=timeout, check=False
    )


def test_text_and_json_agree(model: str) -> None:
    argv = ["-m", model, "-p", "Hello", "-n", "8", "--temp", "0", "-t", "1"]
    plain = run(*argv)
    assert plain.returncode == 0, plain.stderr.decode()
    result = json.loads(run(*argv, "--json").stdout)
    completion = result["completions"][0]
    assert plain.stdout.decode() == completion["text"]
    assert len(completion["token_ids"]) == 8
    assert completion["finish_reason"] == "length"
    assert completion["text"]
    assert result["stats"]["decode_tokens"] >= 7
    assert b"tokens/s" in plain.stderr
    assert b"neurons" in plain.stderr


def test_several_prompts_give_what_each_gives_alone(model: str) -> None:
    argv = ["-m", model, "-n", "6", "-s", "3", "-c", "64", "--json"]
    together = json.loads(run(*argv, "--parallel", "2", "-p", "Hello", "-f", "-", stdin=b"One two three\n").stdout)
    alone = json.loads(run(*argv, "-p", "One two three").stdout)
    assert [(c["prompt_index"], c["index"], c["seed"]) for c in together["completions"]] == [
        (0, 0, 3),
        (0, 1, 4),
        (1, 0, 3),
        (1, 1, 4),
    ]
    assert together["completions"][2]["token_ids"] == alone["completions"][0]["token_ids"]


def test_a_plain_dialogue_through_pipes(model: str) -> None:
    done = run("-m", model, "-i", "-p", "Hello", "-n", "3", "--temp", "0", stdin=b"more\n")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout
    assert b"Traceback" not in done.stderr


def test_a_plain_dialogue_outlives_an_input_beyond_its_context(model: str) -> None:
    argv = ["-m", model, "-i", "-c", "32", "-r", "X", "-p", "a", "-n", "4", "--temp", "0"]
    done = run(*argv, stdin=b"word " * 288 + b"\nb\n")
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 0, done.stderr.decode()
    assert sum("the context holds 32; this input is left out" in line for line in lines) == 1
    assert any("tokens/s" in line for line in lines)
    assert done.stdout == run(*argv, stdin=b"b\n").stdout


ERRORS = [
    (["-m", "{tmp}/absent.gguf"], 1, "absent.gguf"),
    (["-m", "{tmp}"], 1, ""),
    (["-m", "{tmp}/text.gguf"], 1, "text.gguf"),
    (["-m", "{tmp}/empty.gguf"], 1, "empty.gguf"),
    (["-m", "{fixtures}/relu-llama.reference.gpuidx"], 1, ""),
    (["-m", "{model}", "-c", "1000000"], 1, "1000000"),
    (["-m", "{model}", "-c", "8", "-f", "{tmp}/long.txt"], 1, "the context holds 8"),
    (["-m", "{model}", "-mg", "99"], 1, "no such device"),
    (["-m", "{model}", "-f", "{tmp}/absent.txt"], 1, "absent.txt"),
    (["-m", "{model}", "--gpu-index", "{tmp}/nope"], 1, "nope: cannot be read: No such file or directory"),
    (["-m", "{model}", "--gpu-index", "{tmp}"], 1, "cannot be read: Is a directory"),
    (["-m", "{model}", "-l", "99999999+1"], 2, "99999999"),
    (["-m", "{model}", "--top-p", "2"], 2, "--top-p"),
    (["-m", "{model}", "-ngl", "3"], 2, "-ngl"),
    (["-m", "{model}", "--activation", "gelu"], 2, "--activation"),
]


@pytest.mark.parametrize(("argv", "code", "message"), ERRORS, ids=[" ".join(argv) for argv, _, _ in ERRORS])
def test_user_errors_are_one_line(
    argv: list[str], code: int, message: str, model: str, fixtures: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.gguf").write_text("this is no model\n" * 10)
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "long.txt").write_text("word " * 50)
    done = run(*[part.format(tmp=tmp_path, fixtures=fixtures, model=model) for part in argv])
    lines = done.stderr.decode().splitlines()
    errors = [line for line in lines if line.startswith("powerinfer-run: error: ")]
    assert (done.returncode, done.stdout, errors) == (code, b"", lines[-1:])
    assert message in errors[0]
    assert "Traceback" not in done.stderr.decode()


def test_a_budget_without_a_device_is_reported(model: str, fixtures: Path) -> None:
    index = str(fixtures / "relu-llama.reference.gpuidx")
    done = run("-m", model, "-p", "Hello", "-n", "1", "--vram-budget", "4", "--gpu-index", index, "-t", "1")
    assert done.returncode == 0, done.stderr.decode()
    assert b"everything runs on the CPU" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_with_its_timings(model: str, number: signal.Signals, code: int) -> None:
    argv = ["-m", model, "-p", "Hello", "--ignore-eos", "--keep", "1", "-c", "64", "-s", "1"]
    with subprocess.Popen(
        [*COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert b"[interrupted]" in err
    assert b"tokens/s" in err
    assert b"Traceback" not in err


def test_a_reader_that_leaves_is_no_error(model: str) -> None:
    argv = ["-m", model, "-p", "Hello", "--ignore-eos", "--keep", "1", "-c", "64", "-s", "1"]
    with subprocess.Popen(
        [*COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.stdout.close()
        started = time.monotonic()
        assert process.wait(timeout=30) == 141
        assert time.monotonic() - started < 30
        assert process.stderr is not None
        err = process.stderr.read()
    assert b"Traceback" not in err
    assert b"BrokenPipe" not in err
