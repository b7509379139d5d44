"""Do two texts make the same neurons hot? Compares two folders of activation statistics of one model.

    powerinfer-profile -m MODEL -f a.txt -o A; powerinfer-profile -m MODEL -f b.txt -o B
    python profiling/compare_corpora.py A B [-o profiling/results/NAME.json] [--plot corpora.png] [--share 0.8]

A stands for the text that a placement was made from, B for the text that the model meets later. Per layer:

| figure | what it is |
|---|---|
| hot | neurons of A's hot set: the fewest that make the given share of A's activations |
| overlap | neurons in both hot sets over neurons in either, 1 for equal sets |
| captured | share of B's activations that A's hot set makes: the given share where the texts agree |
| best | the same for B's own hottest neurons, as many: what a placement made from B would reach |
| rank correlation | Spearman's, of how often each neuron fires in A and in B |

The last line is one JSON object. --plot needs the `plot` extra.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from powerinfer_py.cli.command import run_command
from powerinfer_py.errors import ModelError, OptionError
from powerinfer_py.output_files import make_folder
from powerinfer_py.placement.statistics.layer_files import captured_shares, read_activations
from powerinfer_py.placement.statistics.profile import PROFILE_NAME, read_profile
from powerinfer_py.predictor.files import write_json
from powerinfer_py.profiler.plot import require_picture, save_picture

sys.path.append(str(Path(__file__).parent.parent / "tools"))
from result_header import header

SCRIPT = "compare_corpora"
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """One layer, or all layers' neurons as one pool (layer None); see the module. None: nothing fired, or always the
    same number of times.
    """

    layer: int | None
    neurons: int
    hot: int
    overlap: float | None
    captured: float | None
    best: float | None
    rank_correlation: float | None


def agreement(layer: int | None, a: Counts, b: Counts, share: float) -> Agreement:
    """a, b: how often each neuron fired, (n_neurons)."""
    hot_a, hot_b = hot_set(a, share), hot_set(b, share)
    either, n_b = len(np.union1d(hot_a, hot_b)), b.sum()
    return Agreement(
        layer=layer,
        neurons=len(a),
        hot=len(hot_a),
        overlap=len(np.intersect1d(hot_a, hot_b)) / either if either else None,
        captured=float(b[hot_a].sum() / n_b) if n_b else None,
        best=float(captured_shares(b)[len(hot_a)]) if n_b else None,
        rank_correlation=_rank_correlation(a, b),
    )


def hot_set(counts: Counts, share: float) -> npt.NDArray[np.int64]:
    """The fewest neurons that make `share` of the activations; of equals the first ones. Empty where nothing fired."""
    captured = captured_shares(counts)
    n_hot = 0 if captured[-1] == 0 else int(np.searchsorted(captured, share, side="left"))
    return np.argsort(-counts, kind="stable")[:n_hot]


def _rank_correlation(a: Counts, b: Counts) -> float | None:
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return None
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _ranks(counts: Counts) -> npt.NDArray[np.float64]:
    """Ranks from 1, equal counts sharing the mean of theirs."""
    _, inverse, sizes = np.unique(counts, return_inverse=True, return_counts=True)
    ranks: npt.NDArray[np.float64] = (sizes.cumsum() - (sizes - 1) / 2)[inverse]
    return ranks


def compare(a: Path, b: Path, share: float, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Figures as JSON values. names: of the two texts, None for those of the folders.

    Raises as `read_activations`, ModelError where the folders are of different models.
    """
    counts_a, counts_b = read_activations(a), read_activations(b)
    if [len(layer) for layer in counts_a] != [len(layer) for layer in counts_b]:
        raise ModelError(f"{a} and {b} are of models with different layers")
    layers = [agreement(i, *pair, share) for i, pair in enumerate(zip(counts_a, counts_b, strict=True))]
    overall = agreement(None, np.concatenate(counts_a), np.concatenate(counts_b), share)
    name_a, name_b = names or (a.resolve().name, b.resolve().name)
    return {
        "script": SCRIPT,
        "share": share,
        "a": {"name": name_a, **described(a, counts_a)},
        "b": {"name": name_b, **described(b, counts_b)},
        "overall": asdict(overall),
        "layers": [asdict(layer) for layer in layers],
    }


def described(folder: Path, counts: Sequence[Counts]) -> dict[str, Any]:
    """Whose statistics they are, as far as the folder says."""
    result: dict[str, Any] = {"activations": float(sum(layer.sum() for layer in counts))}
    if (folder / PROFILE_NAME).is_file():
        profile = read_profile(folder)
        result |= {"tokens": profile.n_tokens, "text_sha256": profile.text_sha256}
        result["model"] = {"architecture": profile.model.architecture, "fingerprint": profile.model.fingerprint}
    return result


def table(result: dict[str, Any]) -> Table:
    """One row a layer and one for all."""
    shown = Table("layer", "hot", "of", "overlap", "captured", "best", "rank corr.")
    for column in shown.columns:
        column.justify = "right"
    for row in [*result["layers"], result["overall"]]:
        shares = ["-" if row[key] is None else f"{row[key]:.1%}" for key in ("overlap", "captured", "best")]
        correlation = "-" if row["rank_correlation"] is None else f"{row['rank_correlation']:.3f}"
        name = "all" if row["layer"] is None else str(row["layer"])
        shown.add_row(name, str(row["hot"]), str(row["neurons"]), *shares, correlation)
    return shown


def draw(result: dict[str, Any], output: Path) -> None:
    """Writes the picture; its format follows the suffix of `output`."""
    from matplotlib.figure import Figure

    layers = result["layers"]
    numbers = [row["layer"] for row in layers]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, marker in (("captured", "o"), ("best", "s"), ("overlap", "^"), ("rank_correlation", "x")):
        values = [np.nan if row[key] is None else row[key] for row in layers]
        axes.plot(numbers, values, marker=marker, ms=4, lw=1.2, label=key.replace("_", " "))
    axes.axhline(result["share"], color="grey", ls=":", lw=1)
    axes.set(xlabel="layer", ylim=(0, 1.01), title=f"hot set of {result['a']['name']} on {result['b']['name']}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    save_picture(figure, output)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="do two texts make the same neurons hot")
    parser.add_argument("a", type=Path, help="activation folder that hot sets are taken from")
    parser.add_argument("b", type=Path, help="activation folder that they are held against")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="picture to write")
    parser.add_argument("--names", nargs=2, metavar="NAME", help="of the two texts (default: of the folders)")
    parser.add_argument("--share", type=float, default=0.8, help="of activations that make a hot set (default 0.8)")
    arguments = parser.parse_args(argv)

    def run() -> int:
        if not 0 < arguments.share <= 1:
            raise OptionError("--share must lie above 0 and at most 1")
        if arguments.plot is not None:
            require_picture(arguments.plot)
        head = header("profiling/compare_corpora.py", argv)
        result = {**head, **compare(arguments.a, arguments.b, arguments.share, arguments.names)}
        if arguments.output is not None:
            make_folder(arguments.output.parent)
            write_json(arguments.output, result)
        if arguments.plot is not None:
            draw(result, arguments.plot)
        Console(stderr=True).print(table(result))
        print(json.dumps(result))
        return 0

    return run_command(SCRIPT, run)


if __name__ == "__main__":
    raise SystemExit(main())
