"""powerinfer-inspect on every fixture, on gpuidx files that contradict themselves, and its ways to fail."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import helpers_gguf_bytes as b
import numpy as np
import pytest
from helpers_models import edited_copy

from powerinfer_py.cli import inspect
from powerinfer_py.cli.inspect.inspection import inspect_file, part_of
from powerinfer_py.errors import FileFormatError
from powerinfer_py.gguf import GGMLType, GGUFWriter, ValueType

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize(
    ("name", "architecture", "activation", "n_layers", "threshold"),
    [
        ("relu-llama.powerinfer.gguf", "llama", "relu", 12, 0.1),
        ("relu-llama.q4.powerinfer.gguf", "llama", "relu", 12, 0.1),
        ("bamboo.powerinfer.gguf", "bamboo", "drelu", 2, None),
        ("relu-falcon.q4.powerinfer.gguf", "falcon", "relu", 2, None),
    ],
)
def test_models(name: str, architecture: str, activation: str, n_layers: int, threshold: float | None) -> None:
    result = inspect_file(FIXTURES / name)
    assert result.kind == "sparse model"
    assert result.magic == "PWRI"
    assert result.architecture == architecture
    assert result.activation == activation
    assert result.sparse_threshold == threshold
    assert result.hyperparameters["block_count"] == n_layers
    assert result.predictor is not None
    assert result.predictor.n_layers == n_layers
    assert result.predictor.rank_min <= result.predictor.rank_max
    assert result.tokenizer is not None
    assert result.tokenizer.n_tokens == 512
    assert result.n_bytes == (FIXTURES / name).stat().st_size
    for shares in (result.types, result.parts):
        assert sum(share.n_tensors for share in shares) == len(result.tensors)
        assert sum(share.n_bytes for share in shares) == sum(tensor.n_bytes for tensor in result.tensors)
        assert math.isclose(sum(share.fraction for share in shares), 1.0)
    assert {share.name for share in result.parts} == {"attention", "FFN", "predictor", "embedding + head", "other"}


@pytest.mark.parametrize(
    ("tensor", "part"),
    [
        ("blk.0.attn_q.weight", "attention"),
        ("blk.11.attn_norm.weight", "attention"),
        ("blk.3.ffn_down_t.weight", "FFN"),
        ("blk.3.fc1.weight", "predictor"),
        ("token_embd.weight", "embedding + head"),
        ("output.weight", "embedding + head"),
        ("output_norm.weight", "other"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_parts(tensor: str, part: str) -> None:
    assert part_of(tensor) == part


@pytest.mark.parametrize(
    ("magic", "architecture", "named", "expected"),
    [
        ("GGUF", "llama", None, "silu"),
        ("PWRI", "llama", None, "relu"),
        ("PWRI", "llama", "fatrelu", "fatrelu"),
        ("GGUF", "bamboo", None, "drelu"),
        ("GGUF", "falcon", None, "gelu"),
        ("GGUF", "opt", None, "relu"),
        ("PWRI", "arcee", None, "relu2"),
        ("GGUF", "mystery", None, None),
    ],
)
def test_activation(magic: str, architecture: str, named: str | None, expected: str | None, tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "model", magic) as writer:
        writer.add("general.architecture", architecture, ValueType.STRING)
        if named is not None:
            writer.add("powerinfer.activation", named, ValueType.STRING)
    assert inspect_file(tmp_path / "model").activation == expected


@pytest.mark.parametrize(("name", "n_layers"), [("bamboo.reference.gpuidx", 2), ("relu-llama.reference.gpuidx", 12)])
def test_gpu_indexes(name: str, n_layers: int) -> None:
    result = inspect_file(FIXTURES / name)
    assert result.kind == "GPU index"
    report = result.gpu_index
    assert report is not None
    assert report.vram_capacity == 123456789
    assert report.n_layers == n_layers
    assert report.n_neurons == 1024 * n_layers
    assert report.fraction == 3 / 8
    assert report.agrees
    assert report.solved_for == {}
    assert sum(layer.n_gpu for layer in report.layers) == report.n_gpu


def write_gpu_index(path: Path, flags: list[int], bucket: list[int], n_layers: int = 1) -> None:
    with GGUFWriter(path, "PWRI") as writer:
        writer.add("general.architecture", "generic.gpu_index", ValueType.STRING)
        writer.add("generic.gpu_index.block_count", n_layers, ValueType.UINT32)
        writer.add("powerinfer.gpuidx.budget_bytes", 10**9, ValueType.UINT64)
        writer.add("powerinfer.gpuidx.rates", [1.5, math.nan], ValueType.ARRAY, ValueType.FLOAT64)
        writer.add_tensor("blk.0.gpu_idx", GGMLType.I32, (len(flags),))
        writer.add_tensor("blk.0.gpu_bucket", GGMLType.I32, (len(bucket),))
        writer.write_tensor("blk.0.gpu_idx", np.array(flags, np.int32))
        writer.write_tensor("blk.0.gpu_bucket", np.array(bucket, np.int32))


@pytest.mark.parametrize(
    ("flags", "bucket", "fault"),
    [
        ([0, 1, 1], [1, 2], None),
        ([0, 0, 0], [], None),
        ([0, 1, 1], [2], "name different neurons"),
        ([0, 1, 1], [2, 1], "not strictly ascending"),
        ([0, 1, 1], [1, 1, 2], "not strictly ascending"),
        ([0, 1, 1], [1, 3], "ids outside 0 to 2"),
        ([0, 1, 2], [1, 2], "other than 0 and 1"),
    ],
)
def test_gpu_index_that_contradicts_itself(
    flags: list[int], bucket: list[int], fault: str | None, tmp_path: Path
) -> None:
    write_gpu_index(tmp_path / "index", flags, bucket)
    report = inspect_file(tmp_path / "index").gpu_index
    assert report is not None
    assert report.agrees == (fault is None)
    assert report.solved_for == {"powerinfer.gpuidx.budget_bytes": 10**9, "powerinfer.gpuidx.rates": [1.5, "nan"]}
    assert fault is None or any(fault in text for text in report.layers[0].faults)


def test_gpu_index_with_a_layer_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gpu_index(tmp_path / "index", [0, 1], [1], n_layers=2)
    assert inspect.main([str(tmp_path / "index")]) == 0
    output = capsys.readouterr().out
    assert "NO" in output
    assert "block_count is 2, found 1" in output


@pytest.mark.parametrize(
    "path", sorted([*FIXTURES.glob("*.gguf"), *FIXTURES.glob("*.gpuidx")]), ids=lambda path: path.name
)
def test_json_is_one_object(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    fields = json.loads(captured.out)
    assert fields["n_bytes"] == path.stat().st_size
    assert "tensors" not in fields
    assert inspect.main(["--json", "--tensors", str(path)]) == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == sum(share["n_tensors"] for share in fields["types"])


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    path = FIXTURES / "relu-llama.powerinfer.gguf"
    assert inspect.main([str(path)]) == 0
    output = capsys.readouterr().out
    for text in (
        "sparse model (PWRI version 3)",
        "rank 32 to 32",
        "relu (implied by PWRI and llama)",
        "0.1",
        "512 tokens",
    ):
        assert text in output
    assert "blk.7.ffn_up.weight" not in output
    assert inspect.main([str(path), "--tensors"]) == 0
    assert "blk.7.ffn_up.weight" in capsys.readouterr().out


def test_hostile_strings_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model"
    tokens = b.array_entry("tokenizer.ggml.tokens", b.STRING, 2, b.text("\x1b[2J") + b.text("[bold]"))
    name = b.string_entry("general.name", "\x1b]0;owned\x07 [red]x[/red] [/]")
    path.write_bytes(b.gguf_bytes([name, tokens, b.entry("k", b.F32, b"\x00\x00\xc0\x7f")]))
    for arguments in ([str(path)], [str(path), "--json"]):
        assert inspect.main(arguments) == 0
        output = capsys.readouterr().out
        assert "\x1b" not in output
        assert "\x07" not in output
        assert "[red]x[/red] [/]" in output


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken\nname.gguf"
    broken.write_bytes(b"GGUF")
    for path in (tmp_path / "absent", tmp_path, broken, FIXTURES / "tokens.json"):
        for extra in ([], ["--json"]):
            assert inspect.main([str(path), *extra]) == 1
            captured = capsys.readouterr()
            assert captured.out == ""
            assert captured.err.startswith("powerinfer-inspect: error: ")
            assert captured.err.count("\n") == 1
    with pytest.raises(FileFormatError):
        inspect_file(tmp_path / "absent")


@pytest.mark.parametrize("arguments", [[], ["--unknown", "x"], ["a", "b"]])
def test_usage_errors_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        inspect.main(arguments)
    assert caught.value.code == 2
    assert "usage: powerinfer-inspect" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "expected"), [("--help", "examples:"), ("--version", "powerinfer-inspect")])
def test_help_and_version(option: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        inspect.main([option])
    assert caught.value.code == 0
    assert expected in capsys.readouterr().out


def test_a_reader_that_leaves_early_causes_no_traceback(tmp_path: Path) -> None:
    """The pipe is closed before anything is written to it."""
    path = tmp_path / "model.gguf"
    shutil.copy(FIXTURES / "relu-llama.powerinfer.gguf", path)
    for extra in ([], ["--json"]):
        command = [sys.executable, "-m", "powerinfer_py.cli.inspect", str(path), "--tensors", *extra]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        process.stderr.close()
        assert process.wait(timeout=60) == 141
        assert errors == b""


def test_inspecting_needs_no_torch() -> None:
    code = (
        "import sys; from powerinfer_py.cli import inspect; "
        f"inspect.main([{str(FIXTURES / 'bamboo.powerinfer.gguf')!r}]); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


def with_nan(folder: Path) -> Path:
    """The small model of the fixtures with NaN in one scale of a layer."""

    def edit(name: str, data: np.ndarray) -> np.ndarray:
        if name == "blk.1.ffn_up.weight":
            data[36:38] = 0xFF
        return data

    return edited_copy(FIXTURES / "bamboo.q4.powerinfer.gguf", folder / "nan.gguf", edit)


def test_check_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = str(FIXTURES / "bamboo.q4.powerinfer.gguf"), str(with_nan(tmp_path))
    assert inspect.main(["--check-tensors", good]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert inspect.main(["--check-tensors", bad]) == 1
    out = capsys.readouterr().out
    assert "blk.1.ffn_up.weight" in out
    assert "NaN" in out
    assert inspect.main(["--check-tensors", "--json", bad]) == 1
    faults = json.loads(capsys.readouterr().out)["tensor_faults"]
    assert faults == [{"tensor": "blk.1.ffn_up.weight", "fault": "NaN", "n": 1, "first": 2, "in_blocks": True}]
    assert inspect.main(["--json", bad]) == 0
    assert "tensor_faults" not in json.loads(capsys.readouterr().out)
