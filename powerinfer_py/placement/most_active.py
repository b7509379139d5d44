"""The question that PowerInfer's own solver asks: which groups of neurons fire most, under a number of neurons.

No bytes, no times, no model: `solver` asks the better question. Here for files and scripts made for PowerInfer's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import OptionError

Counts = npt.NDArray[np.float64]


def most_active(counts: Sequence[Counts], capacity: int, group: int, threshold: int) -> list[npt.NDArray[np.int32]]:
    """Ids of each layer's neurons on the GPU, ascending, that together fire most often.

    counts: how often each neuron of each layer fired. capacity: most neurons over all layers. group: neurons of a layer
    are taken so many at a time, the most active first (the last group may be smaller). threshold: a layer that gets
    neurons gets at least so many. Raises OptionError for numbers that cannot be.
    """
    if capacity < 0 or group < 1 or threshold < 0:
        raise OptionError(f"capacity {capacity}, group {group}, threshold {threshold}: these cannot be negative or 0")
    orders = [np.argsort(-layer, kind="stable") for layer in counts]
    sizes = [np.diff(np.append(np.arange(0, layer.size, group), layer.size)) for layer in counts]
    values = [
        np.add.reduceat(layer[order], np.arange(0, layer.size, group))
        for layer, order in zip(counts, orders, strict=True)
    ]
    chosen = _groups(values, sizes, capacity, threshold)
    return [
        np.sort(order[: int(size[:n].sum())]).astype(np.int32)
        for order, size, n in zip(orders, sizes, chosen, strict=True)
    ]


def _groups(
    values: Sequence[Counts], sizes: Sequence[npt.NDArray[np.int64]], capacity: int, threshold: int
) -> list[int]:
    """How many groups of each layer: one option a layer, by HiGHS."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    gains = [np.concatenate([[0.0], np.cumsum(value)]) for value in values]
    neurons = [np.concatenate([[0], np.cumsum(size)]) for size in sizes]
    allowed = [np.flatnonzero((taken == 0) | (taken >= min(threshold, int(taken[-1])))) for taken in neurons]
    gain = np.concatenate([layer[at] for layer, at in zip(gains, allowed, strict=True)])
    taken = np.concatenate([layer[at] for layer, at in zip(neurons, allowed, strict=True)])
    owner = np.repeat(np.arange(len(values)), [at.size for at in allowed])
    one = csr_array((np.ones(owner.size), (owner, np.arange(owner.size))))
    unit = max(float(gain.max(initial=0.0)), 1e-30)
    result = milp(
        -gain / unit,
        integrality=np.ones(owner.size),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one, 1, 1), LinearConstraint(taken[None, :], 0, capacity)],
        options={"mip_rel_gap": 1e-6, "time_limit": 60.0},
    )
    if result.x is None:
        raise OptionError("no split was found within a minute")
    picks = np.split(result.x, np.cumsum([at.size for at in allowed])[:-1])
    return [int(at[int(np.argmax(pick))]) for at, pick in zip(allowed, picks, strict=True)]
