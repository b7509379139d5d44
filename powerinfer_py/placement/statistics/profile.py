"""What a profile says: counts per neuron, of which model, over which texts, counted how; and its safetensors file.

Not the folder it lies in (`folder.py`). A file holds the tensors `fired`, and with predictors `predicted` and `both`,
int64 (n_layer, n_ff), and in its metadata one JSON object, `profile`, with the SHA-256 over the tensors in it; the same
profile always makes the same bytes. Invariant: a profile that was read is the one that was written, whole, and its
numbers do not contradict each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from powerinfer_py.config import CacheType, ModelConfig
from powerinfer_py.errors import FileFormatError, ModelError, OptionError, printable
from powerinfer_py.placement.statistics.counts import ActivationCounts, Counts
from powerinfer_py.placement.statistics.layer_files import read_activations

FORMAT = "powerinfer-py activation statistics, version 1"
PROFILE_NAME = "activation.safetensors"
STATE_NAME = "activation.state"


@dataclass(frozen=True)
class ProfiledModel:
    """Which model was counted. `fingerprint` names the file; statistics bind to all but it and `sparse_threshold`."""

    fingerprint: str
    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    activation: str
    fatrelu_threshold: float
    has_predictors: bool
    sparse_threshold: float

    @classmethod
    def of(cls, config: ModelConfig, fingerprint: str) -> ProfiledModel:
        """The model with these hyperparameters."""
        return cls(
            fingerprint=fingerprint,
            architecture=config.architecture,
            n_layer=config.n_layer,
            n_embd=config.n_embd,
            n_ff=config.n_ff,
            activation=config.activation.value,
            fatrelu_threshold=config.fatrelu_threshold,
            has_predictors=config.has_predictors,
            sparse_threshold=config.sparse_threshold if config.has_predictors else 0.0,
        )

    def misfit(self, config: ModelConfig) -> str | None:
        """Why these statistics cannot serve a model, or None where they can: an F16 model's serve its Q4_0."""
        for name in ("architecture", "n_layer", "n_embd", "n_ff"):
            mine, theirs = getattr(self, name), getattr(config, name)
            if mine != theirs:
                return f"they are of a model with {name} {printable(str(mine))}, this one has {theirs}"
        return None


@dataclass(frozen=True)
class ProfiledText:
    """One text: the digest and size of its bytes, and how many of its tokens were counted."""

    sha256: str
    n_bytes: int
    n_tokens: int


@dataclass(frozen=True)
class ProfileSettings:
    """How tokens were run: the mode, tokens a chunk, most tokens of one forward, and how the KV cache stores them."""

    context: int
    batch_size: int
    mode: str = "exact"
    cache_type_k: str = CacheType.F16.value
    cache_type_v: str = CacheType.F16.value


@dataclass(frozen=True, eq=False)
class ActivationProfile:
    """Counts over `n_tokens` tokens of the texts. run: what names the run, equal for the same command on any day.

    n_chunks: chunks that were counted.
    """

    model: ProfiledModel
    settings: ProfileSettings
    texts: tuple[ProfiledText, ...]
    counts: ActivationCounts
    n_chunks: int
    run: str

    @property
    def n_tokens(self) -> int:
        """Tokens of text that were counted; the token that begins a chunk is not."""
        return sum(text.n_tokens for text in self.texts)

    @property
    def text_sha256(self) -> str:
        """SHA-256 over the digests of the texts, in order."""
        return hashlib.sha256("".join(text.sha256 for text in self.texts).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the counts, as JSON values."""
        return {
            "tokens": self.n_tokens,
            "chunks": self.n_chunks,
            "text_sha256": self.text_sha256,
            "texts": [asdict(text) for text in self.texts],
            "model": asdict(self.model),
            "settings": asdict(self.settings),
            "run": self.run,
        }


def encode_profile(profile: ActivationProfile) -> bytes:
    """The bytes of its safetensors file."""
    from safetensors.numpy import save

    arrays = profile.counts.arrays()
    described = {"format": FORMAT, "sha256": _digest(arrays), **profile.to_dict()}
    # One entry: safetensors writes several in an order that differs from one call to the next.
    return save(arrays, {"profile": json.dumps(described, allow_nan=False)})


def decode_profile(path: Path) -> ActivationProfile:
    """The profile in a file. Raises FileFormatError for one that is cut short, damaged or something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            described = _described(file.metadata())
            if described.get("format") != FORMAT:
                raise FileFormatError("holds no activation statistics of this package", path=path)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise FileFormatError(f"cannot be read: {error.strerror or error}", path=path) from None
    except SafetensorError as error:
        raise FileFormatError(f"is damaged: {printable(str(error))}", path=path) from None
    if described.get("sha256") != _digest(arrays):
        raise FileFormatError("is damaged: its checksum does not agree", path=path)
    try:
        profile = _from_dict(described, arrays)
    except (KeyError, TypeError, ValueError):
        raise FileFormatError("is damaged: its description cannot be read", path=path) from None
    if (fault := _fault(profile)) is not None:
        raise FileFormatError(fault, path=path)
    return profile


def read_profile(folder: Path) -> ActivationProfile:
    """The finished statistics in a folder.

    Raises FileFormatError where there are none, where they are damaged, and where the `.pt` files hold other counts.
    """
    path = folder / PROFILE_NAME
    if not path.is_file():
        unfinished = (folder / STATE_NAME).is_file()
        what = f"an unfinished run: {STATE_NAME} without {PROFILE_NAME}" if unfinished else f"no {PROFILE_NAME}"
        raise FileFormatError(f"holds {what}", path=folder)
    profile = decode_profile(path)
    # The layers' files are the statistics that PowerInfer and gpuidx solvers read.
    counts = read_activations(folder, profile.model.n_layer, profile.model.n_ff)
    for layer, fired in enumerate(profile.counts.fired):
        if not np.array_equal(counts[layer], fired.astype(np.float64)):
            raise FileFormatError(f"activation_{layer}.pt holds other counts than {PROFILE_NAME}", path=folder)
    return profile


def merge_profiles(profiles: Sequence[ActivationProfile], *, same_text: bool = False) -> ActivationProfile:
    """One profile of runs of the same model in the same way, as if one run had counted all their texts.

    same_text: let a text count as often as it was run. Raises ModelError for different models, OptionError for
    different settings or a text that several runs counted.
    """
    first = profiles[0]
    for other in profiles[1:]:
        _require_same("model", asdict(first.model), asdict(other.model), ModelError)
        _require_same("settings", asdict(first.settings), asdict(other.settings), OptionError)
    texts = tuple(text for profile in profiles for text in profile.texts)
    digests = [text.sha256 for text in texts]
    if not same_text and (twice := next((d for d in digests if digests.count(d) > 1), None)):
        raise OptionError(
            f"the text with SHA-256 {twice[:16]}... was counted by more than one of these runs; "
            "--same-text counts it as often"
        )
    counts = ActivationCounts.zeros(first.model.n_layer, first.model.n_ff, has_predictors=first.model.has_predictors)
    for profile in profiles:
        counts.add(profile.counts)
    run = hashlib.sha256(" ".join(sorted(profile.run for profile in profiles)).encode()).hexdigest()
    return ActivationProfile(
        first.model, first.settings, texts, counts, sum(profile.n_chunks for profile in profiles), run
    )


def _require_same(what: str, mine: Mapping[str, Any], theirs: Mapping[str, Any], error: type[Exception]) -> None:
    for name, value in mine.items():
        if theirs[name] != value:
            raise error(
                f"these runs differ in their {what}: {name} is {printable(str(value))} in the first and "
                f"{printable(str(theirs[name]))} in another; they cannot be merged"
            )


def _described(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """The JSON object of a file's metadata; empty where there is none."""
    try:
        value = json.loads((metadata or {}).get("profile", ""))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _from_dict(described: Mapping[str, Any], arrays: Mapping[str, Counts]) -> ActivationProfile:
    """Raises KeyError, TypeError or ValueError for what is no description of a profile."""
    if not set(arrays) <= {"fired", "predicted", "both"}:
        raise ValueError("unknown tensor")
    return ActivationProfile(
        model=_typed(ProfiledModel, described["model"]),
        settings=_typed(ProfileSettings, described["settings"]),
        texts=tuple(_typed(ProfiledText, text) for text in described["texts"]),
        counts=ActivationCounts(**arrays),
        n_chunks=_integer(described["chunks"]),
        run=str(described["run"]),
    )


def _typed(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """An instance of a dataclass of plain fields, each of the type that it declares."""
    for field in fields(kind):
        value = values[field.name]
        allowed: tuple[type, ...] = {"str": (str,), "bool": (bool,), "int": (int,), "float": (int, float)}[
            str(field.type)
        ]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            raise TypeError(field.name)
    return kind(**values)


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("expected an integer")
    return value


def _fault(profile: ActivationProfile) -> str | None:
    """What in a profile contradicts itself."""
    model, counts = profile.model, profile.counts
    arrays = counts.arrays()
    expected = {"fired", "predicted", "both"} if model.has_predictors else {"fired"}
    if set(arrays) != expected:
        return f"has the tensors {', '.join(sorted(arrays))}, expected {', '.join(sorted(expected))}"
    for name, array in arrays.items():
        if array.dtype != np.int64 or array.shape != (model.n_layer, model.n_ff):
            return f"{name} is {array.dtype} {array.shape}, expected int64 ({model.n_layer}, {model.n_ff})"
        if array.size and (array.min() < 0 or array.max() > profile.n_tokens):
            return f"{name} has counts outside 0 to the {profile.n_tokens} tokens that were run"
    return None


def _digest(arrays: Mapping[str, Counts]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
