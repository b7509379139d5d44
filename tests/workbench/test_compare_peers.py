"""The comparison of engines: ours really run, the peers played by scripts that say what a peer would say."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from powerinfer_py.errors import PowerInferError

ROOT = Path(__file__).parent.parent.parent
FIXTURE = ROOT / "tests/fixtures/relu-llama.q4.powerinfer.gguf"
DENSE = ROOT / "tests/fixtures/llama_cpp/llama.gguf"
POWERINFER_LOG = """\
llama_print_timings:        load time =     251.37 ms
llama_print_timings:      sample time =       3.08 ms /    24 runs   (    0.13 ms per token,  7782.10 tokens per second)
llama_print_timings: prompt eval time =    1130.06 ms /    17 tokens (   66.47 ms per token,    15.04 tokens per second)
llama_print_timings:        eval time =    2057.00 ms /    23 runs   (   89.43 ms per token,    11.18 tokens per second)
llama_print_timings:       total time =   13197.77 ms
"""


@pytest.fixture(autouse=True)
def tools_in_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def tool(name: str) -> ModuleType:
    return importlib.import_module(name)


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport json, sys\n{body}\n")
    path.chmod(0o755)
    return path


def test_powerinfer_timings() -> None:
    found = tool("peer_powerinfer").timings(POWERINFER_LOG)
    assert found == {"prompt eval": (17, pytest.approx(1.13006)), "eval": (23, pytest.approx(2.057))}
    with pytest.raises(ValueError, match="no timings of eval"):
        tool("peer_powerinfer").timings(POWERINFER_LOG.replace(" eval time =    2057", ""))


TRANSFORMERS = """\
import json
from types import SimpleNamespace

import torch

__version__ = "0.0"


class AutoModelForCausalLM:
    config = SimpleNamespace(vocab_size=100)

    @classmethod
    def from_pretrained(cls, folder, torch_dtype, local_files_only):
        return cls()

    def eval(self):
        return self

    def __call__(self, input_ids, past_key_values, use_cache):
        before = past_key_values or 0
        with open("calls", "a") as file:
            print(json.dumps([before, input_ids.shape[1]]), file=file)
        logits = torch.zeros(1, input_ids.shape[1], 100)
        return SimpleNamespace(logits=logits, past_key_values=before + input_ids.shape[1])
"""


def test_a_peer_is_asked_for_what_is_timed(tmp_path: Path) -> None:
    """A warm-up, the prompt twice, the decode behind a short prompt, each from an empty cache."""
    (tmp_path / "transformers.py").write_text(TRANSFORMERS)
    command = [sys.executable, str(ROOT / "tools/peer_transformers.py"), "folder", "--n", "3", "--prompt", "40"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {
        "engine",
        "version",
        "dtype",
        "threads",
        "decode_tokens_per_s",
        "prompt_tokens_per_s",
        "load_s",
    }
    assert min(result["decode_tokens_per_s"], result["prompt_tokens_per_s"], result["load_s"]) > 0
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    warm_up = [[0, 16], *([16 + i, 1] for i in range(8))]
    assert calls == [*warm_up, [0, 40], [0, 40], [0, 16], [16, 1], [17, 1], [18, 1]]


def test_powerinfer_is_asked_for_what_is_timed(tmp_path: Path) -> None:
    arguments = tmp_path / "arguments"
    body = (
        f"open({str(arguments)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\nsys.stderr.write({POWERINFER_LOG!r})"
    )
    binary = script(tmp_path / "main", body)
    options = SimpleNamespace(binary=str(binary), model="m.gguf", threads=3, n=22, prompt=100)
    result = tool("peer_powerinfer").measure(options)
    assert result["decode_tokens_per_s"] == pytest.approx(23 / 2.057)
    assert result["prompt_tokens_per_s"] == pytest.approx(17 / 1.13006)
    decode, prompt = (json.loads(line) for line in arguments.read_text().splitlines())
    for command in (decode, prompt):
        assert command[command.index("-t") + 1] == "3"
        assert "--ignore-eos" in command
    assert decode[decode.index("-n") + 1] == "23"
    assert len(decode[-1]) < len(prompt[-1])


def test_ratios_are_taken_within_a_round() -> None:
    def samples(*rates: float) -> list[dict[str, float | None]]:
        return [{"decode_tokens_per_s": rate, "prompt_tokens_per_s": None} for rate in rates]

    ratios = tool("compare_peers").compare(
        {"ours predictor": samples(2, 9, 40), "PowerInfer": samples(1, 3, 10), "ours dense": samples(1, 1, 1)}
    )
    assert ratios == [
        {"ours": "ours predictor", "peer": "PowerInfer", "what": "decode", "median": 3.0, "min": 2.0, "max": 4.0}
    ]


def test_run_with_peers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = tool("compare_peers")
    rates = {"decode_tokens_per_s": 1.0, "prompt_tokens_per_s": 2.0}
    llama = script(tmp_path / "python", f"print(json.dumps({rates!r}))")
    main = script(tmp_path / "main", f"sys.stderr.write({POWERINFER_LOG!r})")
    output = tmp_path / "result.json"
    arguments = ["--model", FIXTURE, "--dense-twin", DENSE, "--llama-cpp-python", llama, "--powerinfer", main]
    arguments += ["--checkpoint", tmp_path, "--transformers", llama]
    arguments += [
        "--prompt",
        20,
        "--n",
        4,
        "--repeats",
        1,
        "--wait-idle",
        0,
        "--retries",
        0,
        "--probe-mib",
        1,
        "--json",
        output,
    ]
    assert compare.main(list(map(str, arguments))) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    written = json.loads(output.read_text())
    assert {*tool("result_header").REQUIRED, "summary", "ratios", "samples", "disturbed"} == set(written)
    assert result == {name: written[name] for name in result}
    assert set(result["summary"]) == {
        "ours predictor",
        "PowerInfer",
        "ours dense",
        "llama.cpp dense",
        "transformers",
        "read bandwidth",
    }
    ours = written["samples"]["ours predictor"][0]
    assert 0 < ours["share_computed"] < 1
    decode = next(ratio for ratio in result["ratios"] if ratio["what"] == "decode" and ratio["peer"] == "PowerInfer")
    assert decode["median"] == pytest.approx(ours["decode_tokens_per_s"] / (23 / 2.057))
    bandwidth = result["summary"]["read bandwidth"]["gb_per_s"]["median"]
    assert result["summary"]["ours dense"]["share_of_bandwidth"] == pytest.approx(
        written["samples"]["ours dense"][0]["gb_per_s"] / bandwidth
    )


def test_disturbed_samples_are_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = tool("compare_peers")
    busy = iter([0.5, 0.0, 0.7, 0.8])
    monkeypatch.setattr(compare, "run_sample", lambda _engine: {"cores_used_by_others": next(busy)})
    options = SimpleNamespace(repeats=2, retries=1, wait_idle=0)
    samples, disturbed = compare.run_rounds([compare.Engine("ours", ())], options)
    assert [sample["cores_used_by_others"] for sample in samples["ours"]] == [0.0, 0.8]
    assert [sample["cores_used_by_others"] for sample in disturbed["ours"]] == [0.5, 0.7]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="processor time of others is read from /proc/stat")
def test_work_of_others_is_told_from_our_own() -> None:
    compare = tool("compare_peers")
    spin = "import time\nwhile time.process_time() < 0.5: pass\nprint('{}')"
    before, own = compare._busy_s(), compare._children_s()
    sample = compare.run_sample(compare.Engine("spin", (sys.executable, "-c", spin)))
    assert compare._children_s() - own >= 0.5
    assert compare._busy_s() - before >= 0.4
    # Whatever else runs on this machine, the half second of our own is not counted as theirs.
    assert sample["cores_used_by_others"] <= (os.cpu_count() or 1) - 0.4 / sample["elapsed_s"]


def test_failures_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = tool("compare_peers")
    assert compare.main([]) == 1
    assert "name a model" in capsys.readouterr().err
    assert compare.main(["--model", str(FIXTURE), "--repeats", "0"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert compare.main(["--model", str(tmp_path / "none.gguf"), "--wait-idle", "0", "--repeats", "1"]) == 1
    assert "ours predictor failed" in capsys.readouterr().err


def row(rate: float, seconds: float = 1.0) -> dict[str, float | None]:
    return {"decode_tokens_per_s": rate, "prompt_tokens_per_s": None, "elapsed_s": seconds, "cores_used_by_others": 0.0}


def test_the_shortest_row_is_of_those_that_can_run() -> None:
    rows = tool("peer_rows")
    samples = {"ours dense": [row(1, 9), row(1, 1), row(1, 2)], "ours exact": [row(1, 3)], "PowerInfer": [row(1, 0.1)]}
    samples["read bandwidth"] = [{"gb_per_s": 1.0, "elapsed_s": 0.0}]
    assert rows.shortest_row(samples, ["ours exact", "ours dense", "read bandwidth"]) == "ours dense"
    with pytest.raises(PowerInferError, match="no row of the file can be repeated"):
        rows.shortest_row(samples, ["read bandwidth"])


@pytest.mark.parametrize(("again", "agrees"), [((4, 5), True), ((7, 9), True), ((1, 2.9), False), ((8.1, 9), False)])
def test_rows_agree_where_their_ranges_meet(again: tuple[float, ...], agrees: bool) -> None:
    found = tool("peer_rows").agreement([row(3), row(8)], [row(rate) for rate in again])
    assert found == {"decode": {"recorded": [3, 8], "repeated": list(again), "agrees": agrees}}


@pytest.mark.parametrize("rate", [5.0, 50.0])
def test_check_repeats_the_shortest_row(
    rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = tool("compare_peers")
    commands = []

    def run_sample(engine: SimpleNamespace) -> dict[str, float | None]:
        commands.append(engine.command)
        return row(rate)

    monkeypatch.setattr(compare, "run_sample", run_sample)
    machine = {"cpu": "another"} if rate == 5 else {**compare.machine(), "cpu_signature": "another"}
    made_with = ["compare_peers.py", "--model", str(FIXTURE), "--powerinfer", "gone/main", "--n", "7", "--repeats", "9"]
    samples = {"ours predictor": [row(4), row(6)], "PowerInfer": [row(1, 0.1)]}
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"machine": machine, "command": made_with, "samples": samples}))
    code = compare.main(["--check", str(result), "--repeats", "2", "--wait-idle", "0"])
    captured = capsys.readouterr()
    assert code == (0 if rate == 5 else 1)
    assert re.search("of another CPU, .*another", captured.err)
    assert ("agrees" if rate == 5 else "DIFFERS") in captured.out
    assert len(commands) == 2
    assert commands[0][commands[0].index("--n") + 1] == "7"
    last = json.loads(captured.out.splitlines()[-1])
    assert (last["row"], last["agrees"]) == ("ours predictor", rate == 5)
    assert len(last["samples"]["ours predictor"]) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"command": ["x", "--model"], "samples": {}, "machine": {}}'])
def test_check_of_another_file_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = tmp_path / "result.json"
    result.write_text(text)
    assert tool("compare_peers").main(["--check", str(result)]) == 1
    assert "result.json" in capsys.readouterr().err
