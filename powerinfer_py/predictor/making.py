"""From a model and texts to a folder of predictors: collect, share out ranks, then one layer after the other.

Everything a layer needs is decided by the settings, so that a run that was stopped and resumed, in whatever groups of
layers, ends in the same numbers as one that was not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from powerinfer_py.config import ModelConfig
from powerinfer_py.errors import DeviceError, ModelError, OptionError, PowerInferError, printable
from powerinfer_py.gguf import GGUFFile, fingerprint, open_gguf
from powerinfer_py.models.hyperparameters import read_config
from powerinfer_py.output_files import locked_folder, require_writable_folder
from powerinfer_py.predictor.calibration import LowRank, calibrated, measure, steady_sum
from powerinfer_py.predictor.collection import Collection, Steps, no_steps
from powerinfer_py.predictor.first_rows import FirstRows, read_first_rows
from powerinfer_py.predictor.folder import COLLECTED, LayerSummary, PredictorFolder
from powerinfer_py.predictor.layer_data import LayerData
from powerinfer_py.predictor.logits import scaled_svd
from powerinfer_py.predictor.rank import allocate_ranks, predictor_bytes, uncertainty
from powerinfer_py.predictor.row_source import bytes_without_predictors
from powerinfer_py.predictor.training import TrainingOptions, train_layer
from powerinfer_py.predictor.windows import Role, Windows, cut_windows, read_texts
from powerinfer_py.tokenizer import load_tokenizer

METHODS = ("trained", "svd")
SMALLEST_RANK = 4
GIB = 2**30
Remark = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What to make. rank: of every layer, None to share out `budget`, a share of the model's bytes.

    calibration_texts: to stop and to calibrate on; none for parts of `texts`. tokens: at most, None for all.
    layers: to make now, None for all; the folder is complete once all are there, made in it or merged into it.
    window: tokens run together; None for the model's context, at most 512.
    max_disk_bytes: for collected tokens at any time. method: "trained" or "svd". device: "cpu" or "cuda", of the
    training; the model always runs on the CPU. Raises OptionError for values out of range.
    """

    model: Path
    texts: tuple[Path, ...]
    output: Path
    calibration_texts: tuple[Path, ...] = ()
    layers: range | None = None
    method: str = "trained"
    rank: int | None = None
    budget: float = 0.1
    tokens: int | None = None
    window: int | None = None
    max_disk_bytes: int = 20 * GIB
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        for name, low in (
            ("rank", SMALLEST_RANK),
            ("tokens", 1),
            ("window", 2),
            ("max_disk_bytes", 1),
            ("seed", 0),
            ("threads", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise OptionError(f"{name.replace('_', ' ')} is {value}, expected at least {low}")
        if self.method not in METHODS:
            raise OptionError(f"method '{printable(self.method)}', expected one of {', '.join(METHODS)}")
        if not 0 < self.budget <= 1:
            raise OptionError(f"budget is {self.budget}, expected a share of the model's bytes above 0 and up to 1")
        if not self.texts:
            raise OptionError("no text given")


@dataclass(frozen=True)
class Report:
    """What was made. budget_bytes: what all predictors together may take, model_bytes times the share asked for."""

    method: str
    tokens: int
    model_bytes: int
    budget_bytes: int
    layers: tuple[LayerSummary, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"bytes": sum(layer.bytes for layer in self.layers)}


def make_predictors(job: Job, remark: Remark = lambda _line: None, steps: Steps = no_steps) -> Report:
    """Fills `job.output`, going on where an earlier run with the same settings stopped.

    remark: told of disk use, passes and each finished layer. Raises a PowerInferError for everything that is wrong
    with the model, the texts, the folder or the settings; what was finished is kept.
    """
    _require_device(job.device)
    require_writable_folder(job.output)
    with open_gguf(job.model) as file:
        config = _sparse_config(file)
        windows = _windows(job, file, config)
        return _Making(job, file, config, windows, remark, steps).run()


class _Making:
    def __init__(
        self, job: Job, file: GGUFFile, config: ModelConfig, windows: Windows, remark: Remark, steps: Steps
    ) -> None:
        self.job, self.file, self.config, self.windows = job, file, config, windows
        self.remark, self.steps = remark, steps
        self.model_bytes = bytes_without_predictors(file)
        self.budget_bytes = int(job.budget * self.model_bytes)
        layers = job.layers
        if layers is not None and not 0 <= layers.start < layers.stop <= config.n_layer:
            raise OptionError(f"layers {layers.start}-{layers.stop - 1}, the model has 0-{config.n_layer - 1}")
        self._check_given_rank()

    def run(self) -> Report:
        """Everything, see the module."""
        job, name = self.job, fingerprint(self.file)
        with locked_folder(job.output, "making predictors in"):
            self.folder = PredictorFolder(job.output, _settings(job, name, self.windows))
            folder = job.output / COLLECTED
            self.collection = Collection(folder, self.file, self.config, self.windows, name, job.threads)
            return self._make_all()

    def _make_all(self) -> Report:
        n_layer = self.config.n_layer
        wanted = range(n_layer) if self.job.layers is None else self.job.layers
        left = [layer for layer in wanted if self.folder.finished(layer) is None]
        if len(left) < len(wanted):
            self.remark(f"{len(wanted) - len(left)} of {len(wanted)} layers are finished already")
        groups = self._groups(left)
        for group in groups:
            counts = self.folder.ranks is None
            self.collection.collect(group, counts=counts, steps=self.steps)
            if counts:
                self.folder.set_ranks(self._ranks())
            for layer in group:
                with _device_memory():
                    self._make(layer)
                self.collection.discard(layer)
        missing = [layer for layer in range(n_layer) if self.folder.finished(layer) is None]
        if missing:
            self.remark(f"{len(missing)} of {n_layer} layers are not made yet, the first is {missing[0]}")
        else:
            self.folder.complete(n_layer)
        self.collection.remove()
        return self._report()

    def _groups(self, layers: Sequence[int]) -> list[Sequence[int]]:
        """The layers whose tokens are on disk together."""
        if not layers:
            return []
        each = self.collection.layer_bytes
        size = min(len(layers), self.job.max_disk_bytes // each)
        if size < 1:
            raise OptionError(
                f"{self.windows.n_tokens} tokens of one layer take {each / GIB:.3g} GiB of disk, more than the "
                f"{self.job.max_disk_bytes / GIB:.3g} allowed: allow more or use fewer tokens"
            )
        groups = [layers[i : i + size] for i in range(0, len(layers), size)]
        self.remark(
            f"{self.windows.n_tokens} tokens, {len(layers)} layers: up to {size * each / GIB:.3g} GiB on disk under "
            f"{printable(str(self.collection.folder))}, in {len(groups)} pass{'es' if len(groups) > 1 else ''} "
            "over the text"
        )
        free = shutil.disk_usage(self.job.output).free
        held = sum(path.stat().st_size for path in self.collection.folder.rglob("*.safetensors"))
        if size * each > free + held:
            raise PowerInferError(
                f"{printable(str(self.job.output))}: {size * each / GIB:.3g} GiB of disk are needed, "
                f"{free / GIB:.3g} are free: a smaller limit makes more passes over less"
            )
        return groups

    def _ranks(self) -> list[int]:
        n_layer, n_embd, n_ff = self.config.n_layer, self.config.n_embd, self.config.n_ff
        if self.job.rank is not None:
            return [self.job.rank] * n_layer
        counts = self.collection.counts()
        bits = [uncertainty(counts[layer], self.windows.n_tokens) for layer in range(n_layer)]
        ranks = allocate_ranks(bits, n_embd, n_ff, self.budget_bytes, self._most())
        self.remark(f"ranks {min(ranks)} to {max(ranks)}, {self._total(ranks)} bytes of {self.budget_bytes} allowed")
        if any(rank % 32 for rank in ranks):
            self.remark("ranks are below 32, which is too short for quantised rows: these predictors stay in float16")
        return ranks

    def _make(self, layer: int) -> None:
        data = self.collection.load(layer).to(self.job.device).evened()
        first = _moved(read_first_rows(self.file, self.config, layer), self.job.device)
        if self.job.method == "svd" and layer == 0 and not first.is_linear:
            self.remark(
                "this model's firing is no linear map of its input (a mean, biases, a threshold or two gates "
                "take part): what SVD reaches is reported, not promised"
            )
        ranks = self.folder.ranks
        assert ranks is not None  # set before the first layer is made
        made = self._uncalibrated(layer, data, first, ranks[layer])
        made = calibrated(made, steady_sum(made, data), data, self.job.training.target_recall)
        counts = measure(made, data, Role.VALIDATION, layer).to_dict()
        n_bytes = predictor_bytes(made.rank, self.config.n_embd, self.config.n_ff)
        summary = LayerSummary(rank=made.rank, bytes=n_bytes, **counts)
        self.folder.save(made, summary)
        self.remark(
            f"layer {layer}: rank {summary.rank}, recall {summary.recall:.2%}, names {summary.predicted_share:.2%} "
            f"where {summary.fired_share:.2%} fire"
        )

    def _uncalibrated(self, layer: int, data: LayerData, first: FirstRows, rank: int) -> LowRank:
        if self.job.method == "svd":
            return scaled_svd(data, first, rank)
        epochs = self.job.training.epochs
        with self.steps(f"layer {layer}", epochs) as advance:
            return train_layer(
                data, first, rank, self.job.training, self.job.seed + layer, lambda epoch, _: advance(1 if epoch else 0)
            )

    def _check_given_rank(self) -> None:
        rank = self.job.rank
        if rank is None:
            return
        if rank > self._most() or (self.job.method == "svd" and rank % 2):
            even = ", an even number for svd" if self.job.method == "svd" else ""
            raise OptionError(f"rank {rank}, expected {SMALLEST_RANK} to {self._most()} for this model{even}")
        needed = self._total([rank] * self.config.n_layer)
        if needed > self.budget_bytes:
            raise OptionError(
                f"rank {rank} takes {needed} bytes in {self.config.n_layer} layers, the budget is {self.budget_bytes} "
                f"({self.job.budget:.3g} of the model's {self.model_bytes}): raise the budget or lower the rank"
            )

    def _most(self) -> int:
        # Two units a direction hold every linear map; more would only cost.
        return 2 * self.config.n_embd if self.job.method == "svd" else self.config.n_embd

    def _total(self, ranks: Sequence[int]) -> int:
        return sum(predictor_bytes(rank, self.config.n_embd, self.config.n_ff) for rank in ranks)

    def _report(self) -> Report:
        summaries = [self.folder.finished(layer) for layer in range(self.config.n_layer)]
        return Report(
            self.job.method,
            self.windows.n_tokens,
            self.model_bytes,
            self.budget_bytes,
            tuple(summary for summary in summaries if summary is not None),
        )


def _sparse_config(file: GGUFFile) -> ModelConfig:
    config = read_config(file)
    if not config.activation.is_sparse:
        raise ModelError(
            f"{printable(str(file.path))}: its activation is {config.activation}, with which every neuron always "
            "fires: there is nothing to predict"
        )
    return config


def _windows(job: Job, file: GGUFFile, config: ModelConfig) -> Windows:
    texts = read_texts((*job.texts, *job.calibration_texts))
    window = min(config.n_ctx_train, 512) if job.window is None else job.window
    if window > config.n_ctx_train:
        raise OptionError(f"a window of {window} tokens, the model's context is {config.n_ctx_train}")
    n_texts = len(job.texts)
    tokenizer = load_tokenizer(file.metadata)
    return cut_windows(tokenizer, texts[:n_texts], window, job.tokens, calibration_texts=texts[n_texts:])


def _settings(job: Job, model_name: str, windows: Windows) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    return {
        "model": model_name,
        "text_and_windows": windows.digest,
        "method": job.method,
        "rank": job.rank,
        "budget": job.budget,
        "seed": job.seed,
        "device": job.device,
        **asdict(job.training),
    }


def _moved(first: FirstRows, device: str) -> FirstRows:
    second = None if first.second is None else first.second.to(device)
    return FirstRows(first.rows.to(device), first.offsets.to(device), second, first.is_linear)


@contextmanager
def _device_memory() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise DeviceError(
            "the device's memory does not hold a layer's tokens: use --device cpu, or fewer tokens"
        ) from None


def _require_device(device: str) -> None:
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device: use --device cpu")
    if device not in ("cpu", "cuda"):
        raise OptionError(f"device '{printable(device)}', expected cpu or cuda")
