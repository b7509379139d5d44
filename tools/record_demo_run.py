"""Gathers what is known of one training of the demo model into a file small enough for the repository.

    python tools/record_demo_run.py demo --text texts/*.txt --evaluation evaluation.json \\
        --perplexity f16=f16.json q8_0=q8_0.json q4_0=q4_0.json -o tools/results/demo_model.json

demo: what tools/train_demo_model.py wrote. --evaluation: the last line of tools/evaluate_demo_model.py. --perplexity:
what `powerinfer-perplexity --json` said of held_out.txt, a file a type of the weights. Added are the SHA-256 of every
chapter by set, so that nobody has to believe that the sets are apart. The last line is the record without its chapters.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_checkpoint import RECORD
from demo_corpus import SETS, CorpusError, read_corpus
from result_header import header

from powerinfer_py.cli.command import run_command
from powerinfer_py.errors import OptionError
from powerinfer_py.predictor.files import read_json, sha256, write_json

SCRIPT = "record_demo_run"
# Of powerinfer-perplexity's figures.
KEPT = ("sparsity", "context", "stride", "scored_tokens", "perplexity", "neurons_fired_share", "text_sha256")


def gather(
    checkpoint: Path, texts: Sequence[Path], evaluation: Path | None, perplexity: dict[str, Path]
) -> dict[str, Any]:
    """The record. Raises PowerInferError for a file that is no such thing, and for texts of another run."""
    training = read_json(checkpoint / RECORD)
    training.pop("history", None)
    corpus = read_corpus(texts)
    if corpus.file_hashes != training.get("text_hashes"):
        raise CorpusError(f"{checkpoint}: was made from other texts")
    measured = {name: read_json(path) for name, path in perplexity.items()}
    return {
        "script": SCRIPT,
        "training": training,
        "checkpoint_sha256": sha256(checkpoint / "model.safetensors"),
        "sets": {
            name: {
                "sha256": hashlib.sha256(corpus.text(name).encode()).hexdigest(),
                "chapters": [
                    [chapter.document, chapter.number, hashlib.sha256(chapter.text.encode()).hexdigest()]
                    for chapter in corpus.of(name)
                ],
            }
            for name in SETS
        },
        "evaluation": None if evaluation is None else read_json(evaluation),
        "perplexity": {name: {key: report[key] for key in KEPT} for name, report in measured.items()},
    }


def _named_path(text: str) -> tuple[str, Path]:
    name, found, path = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"expected TYPE=FILE, not {text!r}")
    return name, Path(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="what is known of one training of the demo model")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True, metavar="FILE", help="the books")
    parser.add_argument("--evaluation", type=Path, metavar="JSON")
    parser.add_argument("--perplexity", type=_named_path, nargs="+", default=[], metavar="TYPE=JSON")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)

    def run() -> int:
        head = header("tools/record_demo_run.py", argv)
        try:
            record = gather(arguments.checkpoint, arguments.text, arguments.evaluation, dict(arguments.perplexity))
        except KeyError as error:
            raise OptionError(f"no report of powerinfer-perplexity: {error} is missing") from None
        record = {**head, **record}
        write_json(arguments.output, record)
        print(json.dumps({name: value for name, value in record.items() if name != "sets"}))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    raise SystemExit(main())
