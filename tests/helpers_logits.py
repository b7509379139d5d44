"""Comparing logits: the recorded ones, and the measure they are held to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

FIXTURES = Path(__file__).parent / "fixtures"
# What every recorded `.f32` file was run on; a row of logits a token.
TOKENS = [1, 17, 300, 45, 399, 23, 511, 77, 440, 3, 88, 401]


def recorded(name: str) -> npt.NDArray[np.float32]:
    """Logits (n_tokens, n_vocab) of an independent engine."""
    return np.fromfile(FIXTURES / name, dtype="<f4").reshape(len(TOKENS), -1)


def nmse(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Mean squared error over the mean square of what was expected; NaN where either side holds one."""
    difference = actual.astype(np.float64) - expected.astype(np.float64)
    return float((difference**2).mean() / (expected.astype(np.float64) ** 2).mean())
