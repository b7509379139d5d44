"""An `Explanation` as lines for a terminal."""

from __future__ import annotations

from typing import Any

from powerinfer_py.generation.explanation import Explanation

_HEAD = f"{'layer':>5} {'fired':>8} {'computed':>9} {'on GPU':>8} {'on CPU':>8} {'ms/token':>9}"


def explanation_lines(explanation: Explanation) -> list[str]:
    """A table of the tokens that were decoded, or of the prompt where none was; a row a layer, and one for all."""
    phase = explanation.main_phase
    rows = explanation.layers(phase)
    n = len(rows)
    total = {key: sum(row[key] for row in rows) for key in rows[0]}
    mean = {key: value / n for key, value in total.items()} | {"seconds_per_token": total["seconds_per_token"]}
    tokens = explanation.phases[phase].tokens
    kind = "decoded" if phase == "decode" else "of the prompt"
    return [
        f"mean of {tokens} token{'s' * (tokens != 1)} {kind}, {explanation.n_ff} neurons a layer; on GPU, on CPU: of "
        "the rows read; times are those of a watched run",
        _HEAD,
        *(_line(str(row["layer"]), row) for row in rows),
        _line("all", mean),
    ]


def _line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:>5} {row['fired']:8.2%} {row['computed']:9.2%} {row['gpu_share']:8.2%} {row['cpu_share']:8.2%} "
        f"{1e3 * row['seconds_per_token']:9.3f}"
    )
