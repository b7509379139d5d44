"""What is in a model or gpuidx file, as plain data for tables and JSON.

It judges nothing and runs nothing: a file with an unknown architecture is described as well. Strings in the result are
the file's own, hostile until printed through `errors.printable` or JSON.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from powerinfer_py.cli.inspect.gpu_index import GpuIndexReport, inspect_gpu_index
from powerinfer_py.gguf import GGUFFile, MetadataEntry, TensorInfo, ValueType, fingerprint, keys, open_gguf
from powerinfer_py.models.registry import ARCHITECTURES

# Longer arrays and strings are shown by their first elements.
SHOWN_ELEMENTS = 6
SHOWN_CHARACTERS = 200

Scalar: TypeAlias = int | float | bool | str

# In this order; the first that matches decides.
_PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("attention", re.compile(r"blk\.\d+\.attn_.*")),
    ("FFN", re.compile(r"blk\.\d+\.ffn_.*")),
    ("predictor", re.compile(r"blk\.\d+\.fc[12]\..*")),
    ("embedding + head", re.compile(r"(token_embd|position_embd|output)\..*")),
)
_OTHER_PART = "other"
_FC1 = re.compile(r"blk\.(\d+)\.fc1\.weight")


@dataclass(frozen=True)
class Share:
    """How many tensors and bytes of the file belong to one type or one part of the model."""

    name: str
    n_tensors: int
    n_bytes: int
    fraction: float


@dataclass(frozen=True)
class TokenizerReport:
    """The vocabulary: kind (`llama`, `gpt2`, ...), pre-tokenizer, sizes."""

    model: str
    pre: str | None
    n_tokens: int
    n_merges: int
    has_chat_template: bool


@dataclass(frozen=True)
class PredictorReport:
    """Layers that have a predictor, and the smallest and largest rank among them."""

    n_layers: int
    rank_min: int
    rank_max: int


@dataclass(frozen=True)
class MetadataLine:
    """A key-value; value is shortened, length counts all elements of an array or characters of a string."""

    key: str
    type: str
    length: int | None
    value: Scalar | list[Scalar]


@dataclass(frozen=True)
class TensorLine:
    """One tensor; offset from the start of the file with number `file_index`."""

    name: str
    type: str
    shape: list[int]
    n_bytes: int
    offset: int
    file_index: int


@dataclass(frozen=True)
class Inspection:
    """Everything `powerinfer-inspect` shows. `None` stands for what the file does not hold."""

    paths: list[str]
    kind: str
    magic: str
    version: int
    n_bytes: int
    alignment: int
    fingerprint: str
    architecture: str | None
    name: str | None
    activation: str | None
    activation_source: str | None
    sparse_threshold: float | str | None
    n_weights: int
    hyperparameters: dict[str, Scalar | list[Scalar]]
    tokenizer: TokenizerReport | None
    predictor: PredictorReport | None
    gpu_index: GpuIndexReport | None
    types: list[Share]
    parts: list[Share]
    metadata: list[MetadataLine]
    tensors: list[TensorLine]


def inspect_file(path: str | os.PathLike[str]) -> Inspection:
    """Describes the file, all parts of a split model included. Raises FileFormatError or UnsupportedError."""
    with open_gguf(path) as file:
        architecture = file.get_str(keys.ARCHITECTURE)
        activation, source = _activation(file, architecture)
        threshold = file.get_float(keys.SPARSE_THRESHOLD)
        return Inspection(
            paths=[str(part) for part in file.paths],
            kind=_kind(file, architecture),
            magic=file.magic,
            version=file.version,
            n_bytes=file.n_bytes,
            alignment=file.alignment,
            fingerprint=fingerprint(file),
            architecture=architecture,
            name=file.get_str(keys.NAME),
            activation=activation,
            activation_source=source,
            sparse_threshold=None if threshold is None else _shown(threshold, ValueType.FLOAT32),
            n_weights=sum(info.n_weights for info in file.tensors.values()),
            hyperparameters=_hyperparameters(file, architecture),
            tokenizer=_tokenizer(file),
            predictor=_predictor(file),
            gpu_index=inspect_gpu_index(file) if architecture == keys.GPU_INDEX_ARCHITECTURE else None,
            types=_shares(file, lambda info: info.ggml_type.name),
            parts=_shares(file, lambda info: part_of(info.name)),
            metadata=[_metadata_line(entry) for entry in file.entries.values()],
            tensors=[_tensor_line(info) for info in file.tensors.values()],
        )


def part_of(tensor_name: str) -> str:
    """Which part of a model a tensor belongs to: attention, FFN, predictor, embedding + head, other."""
    return next((part for part, pattern in _PARTS if pattern.fullmatch(tensor_name)), _OTHER_PART)


def _kind(file: GGUFFile, architecture: str | None) -> str:
    if architecture == keys.GPU_INDEX_ARCHITECTURE:
        return "GPU index"
    if not file.tensors:
        return "metadata without tensors"
    return "sparse model" if file.is_powerinfer else "dense model"


def _activation(file: GGUFFile, architecture: str | None) -> tuple[str | None, str | None]:
    """The FFN's activation and whether a key of the file or the architecture says so."""
    named = file.get_str(keys.ACTIVATION)
    if named is not None:
        return named, keys.ACTIVATION
    declaration = ARCHITECTURES.get(architecture or "")
    if declaration is None:
        return None, None
    implied = declaration.powerinfer_activation if file.is_powerinfer else declaration.dense_activation
    return str(implied), f"implied by {file.magic} and {architecture}"


def _hyperparameters(file: GGUFFile, architecture: str | None) -> dict[str, Scalar | list[Scalar]]:
    prefix = f"{architecture}."
    return {
        key.removeprefix(prefix): _metadata_line(entry).value
        for key, entry in file.entries.items()
        if architecture and key.startswith(prefix)
    }


def _tokenizer(file: GGUFFile) -> TokenizerReport | None:
    model = file.get_str(keys.TOKENIZER_MODEL)
    if model is None:
        return None
    return TokenizerReport(
        model=model,
        pre=file.get_str(keys.TOKENIZER_PRE),
        n_tokens=len(file.get_strings(keys.TOKENIZER_TOKENS, [])),
        n_merges=len(file.get_strings(keys.TOKENIZER_MERGES, [])),
        has_chat_template=keys.CHAT_TEMPLATE in file.metadata,
    )


def _predictor(file: GGUFFile) -> PredictorReport | None:
    ranks = [info.shape[0] for name, info in file.tensors.items() if _FC1.fullmatch(name)]
    return PredictorReport(len(ranks), min(ranks), max(ranks)) if ranks else None


def _shares(file: GGUFFile, name_of: Callable[[TensorInfo], str]) -> list[Share]:
    """Tensors grouped by `name_of`, the largest group first."""
    groups: dict[str, list[int]] = {}
    for info in file.tensors.values():
        groups.setdefault(name_of(info), []).append(info.n_bytes)
    total = sum(map(sum, groups.values())) or 1
    shares = [Share(name, len(sizes), sum(sizes), sum(sizes) / total) for name, sizes in groups.items()]
    return sorted(shares, key=lambda share: -share.n_bytes)


def _metadata_line(entry: MetadataEntry) -> MetadataLine:
    value: Any = entry.value
    if entry.element_type is not None:
        first = value[:SHOWN_ELEMENTS]
        elements = first if isinstance(first, list) else first.tolist()
        shown = [_shown(element, entry.element_type) for element in elements]
        return MetadataLine(entry.key, entry.type_name, len(value), shown)
    length = len(value) if isinstance(value, str) else None
    return MetadataLine(entry.key, entry.type_name, length, _shown(value, entry.type))


def _shown(value: Any, value_type: ValueType) -> Any:
    """Strings cut; NaN and infinity, unknown to JSON, as words; a FLOAT32 as its shortest exact decimal."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        return float(str(np.float32(value))) if value_type is ValueType.FLOAT32 else value
    return value[:SHOWN_CHARACTERS] if isinstance(value, str) else value


def _tensor_line(info: TensorInfo) -> TensorLine:
    return TensorLine(info.name, info.ggml_type.name, list(info.shape), info.n_bytes, info.offset, info.file_index)
