"""Shares of tokens for which each neuron fires: statistics of a folder, as the solver takes them.

Counts nothing. Invariant: what was read fits the architecture and the dimensions it was held against; equal statistics
have equal hashes, whatever files they came from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerinfer_py.config import ModelConfig
from powerinfer_py.errors import FileFormatError, ModelError, printable
from powerinfer_py.placement.statistics.layer_files import layer_files, read_activations
from powerinfer_py.placement.statistics.profile import PROFILE_NAME, read_profile

FOLDER_NAME = "activation"

Shares = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Frequencies:
    """fired: float64 (n_layer, n_ff), the share of tokens for which a neuron fires. predicted: the same of being named
    by the predictor, None where it was not counted. folder: where they were read. sha256: of the counts.
    """

    fired: Shares
    predicted: Shares | None
    folder: Path
    sha256: str


def find_folder(model: Path) -> Path | None:
    """The folder of statistics beside a model file, as PowerInfer's repositories have it; None where there is none."""
    folder = model.parent / FOLDER_NAME
    return folder if layer_files(folder) or (folder / PROFILE_NAME).is_file() else None


def read_frequencies(folder: Path, config: ModelConfig) -> Frequencies:
    """The statistics of a folder for a model; those of the F16 file serve its Q4_0.

    Without `activation.safetensors` the number of tokens is not known: the most frequent neuron then counts as firing
    for every token. Raises FileFormatError for files that are damaged or hold no activation, ModelError where they do
    not fit the model.
    """
    fired: Shares
    predicted: Shares | None = None
    if (folder / PROFILE_NAME).is_file():
        profile = read_profile(folder)
        if (misfit := profile.model.misfit(config)) is not None:
            raise ModelError(f"{printable(str(folder))}: these statistics cannot be used: {misfit}")
        fired = profile.counts.fired.astype(np.float64)
        if profile.counts.predicted is not None:
            predicted = profile.counts.predicted.astype(np.float64)
        n_tokens = float(profile.n_tokens)
    else:
        try:
            fired = np.stack(read_activations(folder, config.n_layer, config.n_ff))
        except ModelError as error:
            raise ModelError(f"{printable(str(folder))}: {error}") from None
        n_tokens = float(fired.max(initial=0.0))
    if not fired.any():
        raise FileFormatError("no neuron ever fired in these statistics", path=folder)
    digest = _digest(config.architecture, fired)
    return Frequencies(fired / n_tokens, None if predicted is None else predicted / n_tokens, folder, digest)


def _digest(architecture: str, fired: Shares) -> str:
    digest = hashlib.sha256(f"{architecture} {fired.shape}\n".encode())
    digest.update(np.ascontiguousarray(fired, "<f8").tobytes())
    return digest.hexdigest()
