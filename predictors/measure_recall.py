"""Measures how well a model's predictors name the neurons that fire, on a text of yours.

    python predictors/measure_recall.py -m MODEL.powerinfer.gguf -f TEXT [--tokens 2000] [--json]

Recall is the share of firing neurons that were predicted (a miss changes the output), precision the share of predicted
neurons that fired (a false alarm costs time). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from powerinfer_py import LLM
from powerinfer_py.cli.command import run_command
from powerinfer_py.errors import OptionError
from powerinfer_py.predictor.recall import LayerRecall, RecallCounter


def measure(model: Path, text: str, max_tokens: int) -> tuple[list[LayerRecall], int]:
    """Counts per layer over at most `max_tokens` tokens of `text`, in windows of the model's context."""
    with LLM(model, sparsity="exact") as llm:
        ids = llm.tokenize(text)[:max_tokens]
        if not ids:
            raise OptionError("the text is empty")
        counter = RecallCounter(llm.engine)
        for start in range(0, len(ids), llm.context_length):
            llm.logits(ids[start : start + llm.context_length], observer=counter)
    return counter.layers, len(ids)


def table(layers: Sequence[LayerRecall]) -> Table:
    """One row a layer."""
    result = Table("layer", "recall", "precision", "predicted", "fired")
    for layer in layers:
        row = layer.to_dict()
        shares = (f"{row[key]:.2%}" for key in ("recall", "precision", "predicted_share", "fired_share"))
        result.add_row(str(layer.layer), *shares)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="recall and precision of a model's predictors on a text")
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-f", "--file", type=Path, required=True, help="text, UTF-8")
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of the text at most (default 2000)")
    parser.add_argument("--json", action="store_true", help="no table, the JSON object alone")
    arguments = parser.parse_args(argv)

    def run() -> int:
        try:
            text = arguments.file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"cannot read {arguments.file}: {error}") from None
        layers, n_tokens = measure(arguments.model, text, arguments.tokens)
        if not arguments.json:
            Console().print(table(layers))
        print(json.dumps({"tokens": n_tokens, "layers": [layer.to_dict() for layer in layers]}))
        return 0

    return run_command("measure_recall", run)


if __name__ == "__main__":
    raise SystemExit(main())
