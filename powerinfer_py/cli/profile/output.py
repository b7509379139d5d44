"""What `powerinfer-profile` prints: a table of sparsity and hot neurons, or the same as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import printable
from powerinfer_py.placement.statistics.profile import ActivationProfile
from powerinfer_py.profiler.report import (
    HOT_SHARE,
    POINTS,
    SparsityFigures,
    layer_figures,
    overall_figures,
    report_dict,
)
from powerinfer_py.profiler.run import ProfileTiming


def print_json(profile: ActivationProfile, timing: ProfileTiming | None, folder: Path) -> None:
    """One line."""
    report = {"folder": str(folder), **report_dict(profile)}
    if timing is not None:
        report["timing"] = {
            "tokens": timing.tokens,
            "resumed_tokens": timing.resumed_tokens,
            "seconds": timing.seconds,
            "tokens_per_s": timing.tokens_per_s,
            "counting_s": timing.counting_s,
        }
    print(json.dumps(report, allow_nan=False))


def print_report(profile: ActivationProfile, folder: Path) -> None:
    """The table: a row a layer, and one for all neurons as one pool."""
    from rich.table import Table

    from powerinfer_py.cli.tables import make_console

    model = profile.model
    table = Table(
        title=f"{model.architecture}, {model.n_layer} layers of {model.n_ff} neurons, {model.activation}: "
        f"{profile.n_tokens} tokens of {len(profile.texts)} text(s)",
        caption=f"hot: the fewest neurons that make {HOT_SHARE:.0%} of the activations; "
        "top x%: the share of the activations that the x% most active neurons make"
        + ("; named: by the predictor" if model.has_predictors else ""),
        title_justify="left",
        caption_justify="left",
    )
    headings = ["layer", "silent", "never", "hot", "hot %", *(f"top {point:.0%}" for point in POINTS)]
    if model.has_predictors:
        headings += ["named", "recall", "prec."]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for figures in layer_figures(profile):
        table.add_row(*_cells(figures, model.has_predictors))
    table.add_section()
    table.add_row(*_cells(overall_figures(profile), model.has_predictors))
    console = make_console()
    console.print(table)
    console.print(f"activation statistics: {printable(str(folder), 400)}", markup=False, soft_wrap=True)


def print_timing(timing: ProfileTiming) -> None:
    """How fast this process was, on stderr."""
    if not timing.tokens:
        remark("nothing was run: the statistics were there already")
        return
    resumed = f", after {timing.resumed_tokens} of an earlier run" if timing.resumed_tokens else ""
    share = timing.counting_s / timing.seconds
    remark(
        f"{timing.tokens} tokens in {timing.seconds:.1f} s ({timing.tokens_per_s:.1f} tokens/s){resumed}; "
        f"{share:.1%} of the time went into counting and predictors, the rest into the model's own arithmetic"
    )


def _cells(figures: SparsityFigures, has_predictors: bool) -> list[str]:
    cells = [
        "all" if figures.layer is None else str(figures.layer),
        f"{figures.silent:.2%}",
        str(figures.never_fired),
        str(figures.hot),
        f"{figures.hot_share:.1%}",
        *(f"{share:.1%}" for share in figures.captured),
    ]
    if has_predictors:
        cells += [_percent(figures.predicted), _percent(figures.recall), _percent(figures.precision)]
    return cells


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"
