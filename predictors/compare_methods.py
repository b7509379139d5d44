"""Holds ways to foresee which neurons fire against each other, on a model and texts of yours.

    python predictors/compare_methods.py -m MODEL -f TEXT --held-out TEXT -o predictors/results/NAME.json [--rank 64]

| method | what it is | bytes a layer |
|---|---|---|
| trained | low-rank predictor, `powerinfer-train-predictors` | 2 rank (n_embd + n_ff) |
| svd | truncated SVD of the gate, scaled and shifted per neuron | the same |
| svd_without_text | the same as `powerinfer-convert --predictor svd` makes it, calibrated on nothing | the same |
| sign_bits | signs of the gate's weights against signs of the input: how many agree | n_embd n_ff / 8 |
| hottest | the neurons that fire most in the training part, as many as trained names on average | n_ff / 8 |
| hottest_as_svd | the same, as many as svd names | n_ff / 8 |

All but this and the lists are calibrated to a recall on one part of the text and counted on the held-out text (without
one: on a part of the text that neither trained nor calibrated them). Perplexity is that of the whole model with the
method's masks, against its dense mode, on the held-out text; decode speed likewise. Sign bits have no kernel in this
package, so neither is given for them. --trained and --svd take folders of predictors that were made before. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compared_methods import METHODS, RUNNABLE, Settings, outcomes, totals
from rich.console import Console
from rich.table import Table

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.cli.command import run_command
from powerinfer_py.cli.streams import remark
from powerinfer_py.config import ModelConfig
from powerinfer_py.convert.gguf_source import convert_gguf
from powerinfer_py.errors import OptionError
from powerinfer_py.gguf import GGUFFile, fingerprint, open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.output_files import make_folder, require_writable
from powerinfer_py.predictor.collection import Collection
from powerinfer_py.predictor.files import read_json, sha256, write_json
from powerinfer_py.predictor.first_rows import read_first_rows
from powerinfer_py.predictor.folder import STATE, LayerSummary, PredictorFolder
from powerinfer_py.predictor.training import TrainingOptions
from powerinfer_py.predictor.windows import cut_windows, read_texts
from powerinfer_py.profiler.perplexity import measure_perplexity
from powerinfer_py.profiler.windows import cut_windows as scored_windows
from powerinfer_py.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).parent.parent / "tools"))
from result_header import header

SCRIPT = "compare_methods"
REPEATS = 12


@dataclass(frozen=True)
class Job:
    """tokens, window: of the text that methods are made from, and of the held-out one alike. decode: tokens to time."""

    model: Path
    texts: tuple[Path, ...]
    held_out: Path | None
    settings: Settings
    tokens: int | None
    window: int
    decode: int
    threads: int | None = None


@dataclass(frozen=True)
class Comparison:
    """texts, held_out: SHA-256 of each file by name. target_recall: of methods that are made here; made_before: of the
    others, as their folder's record has it, None where it has none. layers: per method, one entry a layer; totals: over
    all layers' pairs. decode_tokens_per_s, decode_samples, perplexity: per method, and for modes without predictors;
    the first is the best of the second, the last is empty without a held-out text.
    """

    script: str
    model: str
    model_fingerprint: str
    texts: dict[str, str]
    text_tokens: int
    held_out: dict[str, str]
    held_out_tokens: int | None
    rank: int
    target_recall: float
    made_before: dict[str, float | None]
    layers: dict[str, list[dict[str, Any]]]
    totals: dict[str, dict[str, float]]
    decode_tokens_per_s: dict[str, float | None]
    decode_samples: dict[str, list[float]]
    perplexity: dict[str, dict[str, Any]]


def compare(job: Job) -> Comparison:
    """Makes and measures every method. Raises PowerInferError for what is wrong with the model or the texts."""
    if job.held_out is not None:
        # Refuses a held-out text that methods are made from.
        read_texts((*job.texts, job.held_out))
    with tempfile.TemporaryDirectory(prefix="compare-") as name, open_gguf(job.model) as file:
        folder = Path(name)
        config = read_config(file)
        for rank in (job.settings.rank, job.settings.svd_rank):
            if rank % 2 or not 4 <= rank <= 2 * config.n_embd:
                raise OptionError(f"rank {rank}, expected an even number from 4 to {2 * config.n_embd}")
        made_from = _collected(job, file, config, job.texts, folder / "collected")
        held_out = None
        if job.held_out is not None:
            held_out = _collected(job, file, config, (job.held_out,), folder / "held_out")
        layers = _layers(job, file, config, made_from, held_out, folder)
        speeds = _speeds(job, folder) if job.decode else {}
        perplexity = {} if job.held_out is None else _perplexities(job, folder, job.held_out)
        return Comparison(
            script=SCRIPT,
            model=job.model.name,
            model_fingerprint=made_from.model_name,
            texts=_hashes(job.texts),
            text_tokens=made_from.windows.n_tokens,
            held_out={} if job.held_out is None else _hashes((job.held_out,)),
            held_out_tokens=None if held_out is None else held_out.windows.n_tokens,
            rank=job.settings.rank,
            target_recall=job.settings.training.target_recall,
            made_before={method: _recorded_target(folder) for method, folder in job.settings.folders.items()},
            layers={method: entries for method, (entries, _) in layers.items()},
            totals={method: total for method, (_, total) in layers.items()},
            decode_tokens_per_s={"sign_bits": None, **{name: max(rates) for name, rates in speeds.items()}},
            decode_samples=speeds,
            perplexity=perplexity,
        )


def _hashes(paths: Sequence[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in paths}


def _recorded_target(folder: Path) -> float | None:
    record = folder / STATE
    settings = read_json(record).get("settings") if record.exists() else None
    target = settings.get("target_recall") if isinstance(settings, dict) else None
    return float(target) if isinstance(target, int | float) else None


def _collected(job: Job, file: GGUFFile, config: ModelConfig, texts: Sequence[Path], folder: Path) -> Collection:
    window = min(job.window, config.n_ctx_train)
    windows = cut_windows(load_tokenizer(file.metadata), read_texts(texts), window, job.tokens)
    collection = Collection(folder, file, config, windows, fingerprint(file), job.threads)
    collection.collect(range(config.n_layer), counts=False)
    return collection


def _layers(
    job: Job, file: GGUFFile, config: ModelConfig, made_from: Collection, held_out: Collection | None, folder: Path
) -> dict[str, tuple[list[dict[str, Any]], dict[str, float]]]:
    """Per method its layers' figures and their total; fills `folder`/METHOD with predictors."""
    outputs = {method: PredictorFolder(folder / method, {"method": method}) for method in RUNNABLE}
    found: dict[str, list[Any]] = {method: [] for method in METHODS}
    for layer in range(config.n_layer):
        data = made_from.load(layer).evened()
        measured = None if held_out is None else held_out.load(layer)
        for outcome in outcomes(layer, data, read_first_rows(file, config, layer), job.settings, measured):
            found[outcome.method].append(outcome)
            if outcome.predictor is not None:
                figures = outcome.counts.to_dict()
                summary = LayerSummary(rank=outcome.predictor.rank, bytes=outcome.bytes, **figures)
                outputs[outcome.method].save(outcome.predictor, summary)
        remark(f"layer {layer} of {config.n_layer} done")
    for output in outputs.values():
        output.complete(config.n_layer)
    return {
        method: (
            [outcome.counts.to_dict() | {"bytes": outcome.bytes} for outcome in own],
            totals([outcome.counts for outcome in own]) | {"bytes": sum(outcome.bytes for outcome in own)},
        )
        for method, own in found.items()
    }


def _with_predictors(job: Job, folder: Path, method: str) -> Path:
    path = folder / f"{method}.gguf"
    if not path.exists():
        convert_gguf(
            job.model, folder / method, path, outtype=None, dense=False, activation=None, fatrelu_threshold=None
        )
    return path


def _speeds(job: Job, folder: Path) -> dict[str, list[float]]:
    """Tokens per second of one sequence, REPEATS times."""
    speeds = {method: _rates(_with_predictors(job, folder, method), "predictor", job) for method in RUNNABLE}
    trained = _with_predictors(job, folder, "trained")
    return speeds | {mode: _rates(trained, mode, job) for mode in ("exact", "dense")}


def _rates(path: Path, sparsity: str, job: Job) -> list[float]:
    rates = []
    with LLM(path, sparsity=sparsity, threads=job.threads) as llm:
        for _ in range(REPEATS):
            llm.stats.clear()
            llm.generate("The", SamplingParams(max_tokens=1 + job.decode, temperature=0.0, ignore_eos=True, seed=0))
            rates.append(llm.stats.decode_rate)
    return rates


def _perplexities(job: Job, folder: Path, held_out: Path) -> dict[str, dict[str, Any]]:
    """Of each method and of `exact`, beside dense, as `powerinfer-perplexity --compare dense` measures it."""
    runs = {method: (_with_predictors(job, folder, method), "predictor") for method in RUNNABLE}
    runs["exact"] = (_with_predictors(job, folder, "trained"), "exact")
    (text,) = read_texts([held_out])
    results = {}
    for name, (path, sparsity) in runs.items():
        options = {"threads": job.threads, "context_length": job.window, "batch_size": job.window, "max_batch": 1}
        with (
            LLM(path, sparsity=sparsity, **options) as llm,
            LLM(path, sparsity="dense", **options) as dense,
        ):
            windows = scored_windows(llm.tokenizer, text, job.window)
            if job.tokens is not None:
                windows = windows[: max(1, job.tokens // job.window)]
            results[name] = measure_perplexity(llm, windows, reference=dense).to_dict()
        del results[name]["seconds"], results[name]["tokens_per_s"], results[name]["predictor_s"]
        remark(f"perplexity of {name} done")
    return results


def table(result: Comparison) -> Table:
    """One row a method."""
    shown = Table("method", "recall", "precision", "named", "fire", "bytes", "perplexity / dense", "decode tokens/s")
    for method, total in result.totals.items():
        shares = [f"{total[key]:.2%}" for key in ("recall", "precision", "predicted_share", "fired_share")]
        speed = result.decode_tokens_per_s.get(method)
        compared = result.perplexity.get(method)
        worse = "-" if compared is None else f"{ratio(compared) - 1:+.2%}"
        shown.add_row(method, *shares, f"{total['bytes']:.0f}", worse, "-" if speed is None else f"{speed:.1f}")
    return shown


def ratio(perplexity: dict[str, Any]) -> float:
    """Measured over dense perplexity."""
    return float(perplexity["perplexity"]["value"] / perplexity["compared"]["perplexity"]["value"])


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="trained, SVD, sign bits and fixed lists: recall, bytes, speed")
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("-f", "--file", type=Path, nargs="+", required=True, help="texts, UTF-8, to make methods from")
    parser.add_argument("--held-out", type=Path, metavar="TEXT", help="text to count and to measure perplexity on")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    parser.add_argument("--rank", type=int, default=64, help="hidden units (default 64)")
    parser.add_argument("--svd-rank", type=int, help="hidden units of SVD (default: as --rank)")
    parser.add_argument("--trained", type=Path, metavar="FOLDER", help="predictors trained before")
    parser.add_argument("--svd", type=Path, metavar="FOLDER", help="SVD predictors made before")
    parser.add_argument("--target-recall", type=float, default=0.99)
    parser.add_argument("--epochs", type=int, default=TrainingOptions.epochs)
    parser.add_argument("--tokens", type=int, help="tokens of each text at most")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64, help="tokens to time; 0 for none (default 64)")
    parser.add_argument("-t", "--threads", type=int, help="CPU threads (default: one a physical core)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)

    def run() -> int:
        training = TrainingOptions(epochs=arguments.epochs, target_recall=arguments.target_recall)
        folders = {"trained": arguments.trained, "svd": arguments.svd}
        settings = Settings(
            rank=arguments.rank,
            svd_rank=arguments.svd_rank or arguments.rank,
            training=training,
            folders={method: folder for method, folder in folders.items() if folder is not None},
        )
        job = Job(
            model=arguments.model,
            texts=tuple(arguments.file),
            held_out=arguments.held_out,
            settings=settings,
            tokens=arguments.tokens,
            window=arguments.window,
            decode=arguments.decode,
            threads=arguments.threads,
        )
        head = header("predictors/compare_methods.py", argv)
        if arguments.output is not None:
            make_folder(arguments.output.parent)
            require_writable(arguments.output)
        result = compare(job)
        values = {**head, **asdict(result)}
        if arguments.output is not None:
            write_json(arguments.output, values)
        Console(stderr=True).print(table(result))
        print(json.dumps(values))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    raise SystemExit(main())
