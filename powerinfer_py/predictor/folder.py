"""The folder that a training fills: `model_{i}.pt`, `config.json` and `predictors.safetensors`, as converters read it.

`training.json` says what was asked for, the ranks, and for each finished layer its figures and the digest of its file.
Invariants: a layer counts as finished only with the file that was recorded; `config.json`, which makes the folder
readable, comes last; a folder that was begun with other settings, or by somebody else, is refused untouched.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerinfer_py.convert.predictor_files import ABOUT, ALL_LAYERS, CONFIG
from powerinfer_py.errors import FileFormatError, OptionError, printable
from powerinfer_py.output_files import make_folder
from powerinfer_py.predictor.calibration import THRESHOLD, LowRank
from powerinfer_py.predictor.files import read_json, sha256, write_json, write_part
from powerinfer_py.tensor_files import load_state

if TYPE_CHECKING:
    from torch import Tensor

STATE = "training.json"
COLLECTED = "collected"
_FOREIGN = re.compile(rf"model_\d+\.pt|{re.escape(CONFIG)}|{re.escape(ALL_LAYERS)}")


@dataclass(frozen=True)
class LayerSummary:
    """One finished layer; recall and shares are measured on validation tokens, with the numbers written."""

    layer: int
    rank: int
    recall: float
    precision: float
    predicted_share: float
    fired_share: float
    bytes: int
    sha256: str = ""


class PredictorFolder:
    """An output folder, new or to be gone on with. settings: everything that the numbers depend on, JSON values.

    Raises OptionError where the folder holds something else, PowerInferError where it cannot be made.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = dict(settings)
        make_folder(path)
        self._state: dict[str, Any] = {"settings": self._settings, "ranks": None, "layers": {}}
        if (path / STATE).exists():
            self._state = self._continued(read_json(path / STATE))
        else:
            self._require_unused()

    @property
    def ranks(self) -> list[int] | None:
        """The rank of every layer; None before they were set."""
        ranks = self._state["ranks"]
        return None if ranks is None else list(ranks)

    def set_ranks(self, ranks: list[int]) -> None:
        """Decides the ranks for good."""
        self._state["ranks"] = ranks
        write_json(self.path / STATE, self._state)

    def finished(self, layer: int) -> LayerSummary | None:
        """The layer's figures, where its file is there as it was recorded."""
        entry = self._state["layers"].get(str(layer))
        try:
            summary = LayerSummary(**entry) if isinstance(entry, dict) else None
        except TypeError:
            raise FileFormatError(f"layer {layer} is not described as expected", path=self.path / STATE) from None
        return summary if summary is not None and sha256(self._layer_path(layer)) == summary.sha256 else None

    def save(self, predictor: LowRank, summary: LayerSummary) -> None:
        """Writes the layer's file, then notes it as finished."""
        import torch

        state = {"fc1.weight": predictor.fc1, "fc2.weight": predictor.fc2}
        buffer = io.BytesIO()
        # Clones, since torch would save the whole of what a view was taken from.
        torch.save({name: tensor.half().cpu().contiguous().clone() for name, tensor in state.items()}, buffer)
        path = self._layer_path(summary.layer)
        write_part(path, buffer.getvalue())
        self._state["layers"][str(summary.layer)] = asdict(summary) | {"sha256": sha256(path)}
        write_json(self.path / STATE, self._state)

    def adopt(self, other: PredictorFolder, summary: LayerSummary) -> None:
        """Takes a finished layer of another folder over, byte for byte."""
        try:
            data = other._layer_path(summary.layer).read_bytes()
        except OSError as error:
            raise FileFormatError(
                f"cannot read: {error.strerror or error}", path=other._layer_path(summary.layer)
            ) from None
        write_part(self._layer_path(summary.layer), data)
        self._state["layers"][str(summary.layer)] = asdict(summary)
        write_json(self.path / STATE, self._state)

    def complete(self, n_layer: int) -> None:
        """Writes what holds for all layers."""
        from safetensors.torch import save

        tensors: dict[str, Tensor] = {}
        for layer in range(n_layer):
            state = load_state(self._layer_path(layer))
            tensors |= {f"blk.{layer}.{name}": tensor for name, tensor in state.items()}
        # One key: safetensors writes several in another order each time, and the same work shall give the same bytes.
        about = {"sparse_threshold": THRESHOLD, "settings": self._settings}
        metadata = {ABOUT: json.dumps(about, sort_keys=True)}
        write_part(self.path / ALL_LAYERS, save(tensors, metadata))
        write_json(self.path / CONFIG, {"sparse_threshold": THRESHOLD})

    def _layer_path(self, layer: int) -> Path:
        return self.path / f"model_{layer}.pt"

    def _continued(self, state: dict[str, Any]) -> dict[str, Any]:
        theirs, ranks, layers = state.get("settings"), state.get("ranks"), state.get("layers")
        well_formed = isinstance(theirs, dict) and isinstance(layers, dict)
        if not well_formed or not (ranks is None or (isinstance(ranks, list) and all(map(_is_rank, ranks)))):
            raise FileFormatError("is no record of a training", path=self.path / STATE)
        assert isinstance(theirs, dict)
        for name in [*self._settings, *theirs]:
            if theirs.get(name) != self._settings.get(name):
                raise OptionError(
                    f"{printable(str(self.path))}: was begun with another {printable(name.replace('_', ' '))} "
                    f"({printable(str(theirs.get(name)))}, now {printable(str(self._settings.get(name)))}): "
                    "give what it was begun with, or another folder"
                )
        return {"settings": self._settings, "ranks": ranks, "layers": layers}

    def _require_unused(self) -> None:
        try:
            foreign = sorted(entry.name for entry in self.path.iterdir() if _FOREIGN.fullmatch(entry.name))
        except OSError as error:
            raise OptionError(f"{printable(str(self.path))}: cannot read this folder: {error.strerror}") from None
        if foreign:
            raise OptionError(
                f"{printable(str(self.path))}: holds {foreign[0]}, which this command did not write; "
                "name another folder"
            )


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
