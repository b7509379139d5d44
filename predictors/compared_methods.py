"""The methods that `compare_methods.py` holds against each other, each made for one layer and counted on its tokens.

Invariant: what a method was made from (training and calibration tokens) is never what it is counted on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from powerinfer_py.convert.predictor_files import find_layers
from powerinfer_py.errors import ModelError
from powerinfer_py.predictor.calibration import THRESHOLD, LowRank, calibrated, steady_sum
from powerinfer_py.predictor.first_rows import FirstRows
from powerinfer_py.predictor.layer_data import LayerData
from powerinfer_py.predictor.logits import scaled_svd
from powerinfer_py.predictor.projection import input_moments
from powerinfer_py.predictor.rank import predictor_bytes
from powerinfer_py.predictor.recall import LayerRecall
from powerinfer_py.predictor.training import TrainingOptions, train_layer
from powerinfer_py.predictor.untrained import untrained_svd
from powerinfer_py.predictor.windows import Role

# Predictors that are made here or read from a folder.
MADE = ("trained", "svd", "svd_without_text")
METHODS = (*MADE, "sign_bits", "hottest", "hottest_as_svd")
# Methods whose masks a predictor in a file can give.
RUNNABLE = (*MADE, "hottest", "hottest_as_svd")
# Which predictor each fixed list is as large as.
LISTS = {"hottest": "trained", "hottest_as_svd": "svd"}

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Settings:
    """rank, svd_rank: hidden units. training: its target recall is that of SVD and sign bits too.

    folders: of predictors made before, by method, instead of making them here.
    """

    rank: int
    svd_rank: int
    training: TrainingOptions
    folders: dict[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One method in one layer. predictor: None where no file can hold it. bytes: of what has to be read for a token."""

    method: str
    counts: LayerRecall
    bytes: int
    predictor: LowRank | None


def outcomes(
    layer: int, data: LayerData, first: FirstRows, settings: Settings, measured: LayerData | None
) -> Iterator[Outcome]:
    """Every method, in the order of METHODS. measured: tokens of another text; None for `data`'s validation part."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        roles = (Role.VALIDATION,) if measured is None else tuple(Role)
        for role in roles:
            yield from (data if measured is None else measured).batches(role)

    made = {method: _predictor(method, layer, data, first, settings) for method in MADE}
    named = {}
    for method, predictor in made.items():
        counts = count(layer, batches, lambda x, p=predictor: p.scores(x) >= THRESHOLD)  # type: ignore[misc]
        named[method] = round(counts.predicted * data.n_ff / max(1, counts.neurons))
        yield Outcome(method, counts, predictor_bytes(predictor.rank, data.n_embd, data.n_ff), predictor)
    least = _least_agreement(data, first, settings.training.target_recall)
    signs = first.rows.sign()
    sign_counts = count(layer, batches, lambda x: x.sign() @ signs.T >= least)
    yield Outcome("sign_bits", sign_counts, data.n_embd * data.n_ff // 8, None)
    for method, model in LISTS.items():
        listed = _hottest(data, named[model])
        counts = count(layer, batches, lambda x, p=listed: p.scores(x) >= THRESHOLD)  # type: ignore[misc]
        yield Outcome(method, counts, -(-data.n_ff // 8), listed)


def count(layer: int, batches: Batches, names: Callable[[Tensor], Tensor]) -> LayerRecall:
    """What `names` ((T, n_embd) -> (T, n_ff; bool)) names, against what fired."""
    counts = LayerRecall(layer)
    for x, fired in batches():
        named = names(x)
        counts.neurons += fired.numel()
        counts.predicted += int(named.count_nonzero())
        counts.fired += int(fired.count_nonzero())
        counts.both += int((named & fired).count_nonzero())
    return counts


def _predictor(method: str, layer: int, data: LayerData, first: FirstRows, settings: Settings) -> LowRank:
    if method in settings.folders:
        return _read(settings.folders[method], layer, data)
    if method == "svd_without_text":
        return untrained_svd(first, settings.svd_rank)
    if method == "trained":
        raw = train_layer(data, first, settings.rank, settings.training, layer)
    else:
        raw = scaled_svd(data, first, settings.svd_rank)
    return calibrated(raw, steady_sum(raw, data), data, settings.training.target_recall)


def _read(folder: Path, layer: int, data: LayerData) -> LowRank:
    file = find_layers(folder).get(layer)
    if file is None:
        raise ModelError(f"{folder}: no predictor for layer {layer}")
    fc1, fc2 = file.load()
    if fc1.shape[1] != data.n_embd or fc2.shape != (data.n_ff, fc1.shape[0]):
        raise ModelError(f"{folder}: the predictor of layer {layer} does not fit the model")
    return LowRank(fc1.float(), fc2.float())


def _hottest(data: LayerData, n: int) -> LowRank:
    """A fixed list as a predictor of rank 2: |w @ x| is above 0 for every input, fc2 gives each neuron its sign."""
    fired = sum((fired.sum(dim=0) for _, fired in data.batches(Role.TRAIN)), torch.zeros(data.n_ff, dtype=torch.int64))
    listed = torch.full((data.n_ff,), -1.0)
    listed[fired.argsort(descending=True, stable=True)[:n]] = 1.0
    constant = input_moments(data).constant
    return LowRank(torch.stack([constant, -constant]).half().float(), listed[:, None].repeat(1, 2))


def _least_agreement(data: LayerData, first: FirstRows, target_recall: float) -> float:
    """The fewest signs that must agree for a neuron to be named, one number for the layer; infinite if none fired."""
    signs = first.rows.sign()
    of_fired = torch.cat([(x.sign() @ signs.T)[fired] for x, fired in data.batches(Role.CALIBRATION)])
    if not len(of_fired):
        return float("inf")
    return float(of_fired.kthvalue(int((1 - target_recall) * len(of_fired)) + 1).values)


def totals(layers: Sequence[LayerRecall]) -> dict[str, float]:
    """Of all layers' (token, neuron) pairs together."""
    total = LayerRecall(-1)
    for layer in layers:
        for name in ("neurons", "predicted", "fired", "both"):
            setattr(total, name, getattr(total, name) + getattr(layer, name))
    return {name: value for name, value in total.to_dict().items() if name != "layer"}
