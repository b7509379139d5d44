"""tools/record_demo_run.py on a book of seventeen chapters."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from helpers_scripts import last_line, one_line_error, script

RECORD = script("tools/record_demo_run.py")


def test_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book, run = tmp_path / "book.txt", tmp_path / "run"
    book.write_text("\n\n".join(f"Chapter {n + 1}\n\nWords of chapter {n}." for n in range(17)))
    run.mkdir()
    hashes = {"book": hashlib.sha256(book.read_bytes()).hexdigest()}
    training = {"text_hashes": hashes, "perplexity": {"held_out": 30.0}, "history": {"steps": [1, 2]}}
    (run / "training.json").write_text(json.dumps(training))
    (run / "model.safetensors").write_bytes(b"weights")
    report = dict.fromkeys(RECORD.KEPT, 1) | {"seconds": 5}
    (tmp_path / "f16.json").write_text(json.dumps(report))
    arguments = [run, "--text", book, "--perplexity", f"f16={tmp_path / 'f16.json'}", "-o", tmp_path / "out.json"]
    shown = last_line(RECORD, arguments, capsys)
    record = json.loads((tmp_path / "out.json").read_text())
    assert "history" not in record["training"]
    assert record["perplexity"] == {"f16": dict.fromkeys(RECORD.KEPT, 1)} == shown["perplexity"]
    assert record["checkpoint_sha256"] == hashlib.sha256(b"weights").hexdigest()
    numbers = {name: [number for _, number, _ in own["chapters"]] for name, own in record["sets"].items()}
    assert (numbers["calibration"], numbers["profile"], numbers["held_out"]) == ([3], [7], [11])
    digest = hashlib.sha256(b"Chapter 12\n\nWords of chapter 11.\n").hexdigest()
    assert record["sets"]["held_out"]["chapters"][0][2] == digest == record["sets"]["held_out"]["sha256"]
    book.write_text(book.read_text() + "\n\nMore.")
    assert "was made from other texts" in one_line_error(RECORD, arguments, capsys)
