"""A model that is a GGUF or PWRI file already: dense ReLU GGUF to PWRI, and back, without its checkpoint.

Dense: `ffn_down.weight` (n_embd, n_ff). PWRI: the transpose `ffn_down_t.weight` (n_ff, n_embd), a row a neuron, beside
the predictors `fc1`, `fc2`. Everything else is copied byte for byte unless another type is asked for. The order of
query and key rows is GGUF's in both, so it stays.

Invariant: what the written file says of its activation is what was known of the source, never a guess.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from powerinfer_py.config import Activation
from powerinfer_py.convert import bands
from powerinfer_py.convert.dense_layout import Layout, read_layout
from powerinfer_py.convert.file_limits import powerinfer_limits
from powerinfer_py.convert.file_types import (
    FILE_TYPES,
    OUTPUT_TYPES,
    QUANTIZATION_VERSION,
    QUANTIZATION_VERSION_KEY,
)
from powerinfer_py.convert.output import OutputTensor, Progress, write_model
from powerinfer_py.convert.predictor_tensors import PredictorSource, read_predictors
from powerinfer_py.convert.row_types import matrix_type, type_for_rows
from powerinfer_py.errors import OptionError, UnsupportedError, printable
from powerinfer_py.gguf import (
    BLOCK_LAYOUTS,
    WEIGHT_TYPES,
    GGMLType,
    GGUFFile,
    MetadataEntry,
    TensorInfo,
    ValueType,
    keys,
    open_gguf,
)
from powerinfer_py.gguf.edited_copy import SPLIT_KEYS
from powerinfer_py.gguf.quantisation import Quantizer, quantize

_DOWN = re.compile(r"(blk\.\d+\.)ffn_down\.(weight|bias)")
_DOWN_T = re.compile(r"(blk\.\d+\.)ffn_down_t\.(weight|bias)")
_PREDICTOR = re.compile(r"blk\.\d+\.fc[12]\.weight")
# Told of what a user should know and did not ask for.
Remark = Callable[[str], None]


@dataclass(frozen=True)
class _Request:
    """What the caller wants of one open file; `activation` and threshold as resolved for the written file."""

    file: GGUFFile
    layout: Layout
    dense: bool
    outtype: str | None
    activation: Activation
    fatrelu_threshold: float | None
    predictors: PredictorSource | None
    quantise: Quantizer
    remark: Remark
    # What `remark` was told of types.
    changes: set[str] = field(default_factory=set)

    @property
    def turns_over(self) -> bool:
        """Whether the down projections are the other way round in the written file."""
        return self.dense == self.file.is_powerinfer

    @property
    def keeps_predictors(self) -> bool:
        """Whether the source's own are in the written file."""
        return not self.dense and self.predictors is None


def plan_gguf(
    model: Path,
    predictor_dir: Path | None,
    *,
    outtype: str | None,
    dense: bool,
    activation: Activation | None,
    fatrelu_threshold: float | None,
    predictors: PredictorSource | None = None,
    quantise: Quantizer = quantize,
    remark: Remark = lambda _: None,
) -> tuple[str, list[MetadataEntry], list[OutputTensor]]:
    """Magic, key-values and tensors of the file that `model` becomes; nothing is written and no weight is read.

    model: a GGUF or PWRI file, of a split model any part. predictor_dir: `fc1` and `fc2` of every layer, replacing any
    that are there; or `predictors`, which are in no folder. outtype: one of OUTPUT_TYPES for every matrix; None keeps
    types. dense: write a GGUF without predictors instead of a PWRI. activation, fatrelu_threshold: what the model was
    trained with, where it is not what the file says. quantise: `gguf.quantisation.quantize`, or what gives the same
    faster. remark: told of types that had to change, and of what PowerInfer itself cannot do with the file.

    Raises FileFormatError, UnsupportedError or ModelError for what is wrong with a file, OptionError where the options
    contradict each other or leave nothing to do.
    """
    adds_predictors = predictor_dir is not None or predictors is not None
    if dense and adds_predictors:
        raise OptionError("a dense file has no predictors: name a predictor folder or --dense, not both")
    file = open_gguf(model)
    layout = read_layout(file)
    if dense != file.is_powerinfer and not adds_predictors and outtype is None:
        kind = "a dense GGUF" if dense else "a PowerInfer file"
        others = "--outtype" if dense else "a predictor folder, --outtype or --dense"
        raise OptionError(f"{printable(str(file.path))}: is {kind} already; name {others} to have it changed")
    known, threshold = _activation(file, layout, activation, fatrelu_threshold, dense=dense)
    if predictor_dir is not None:
        predictors = read_predictors(predictor_dir, layout.n_layer, layout.n_embd, layout.n_ff)
    request = _Request(file, layout, dense, outtype, known, threshold, predictors, quantise, remark)
    tensors = [replace(tensor, watches=file.watches) for tensor in _tensors(request)]
    if not dense:
        for limit in powerinfer_limits(layout.architecture, layout.n_ff, known, threshold, tensors):
            remark(limit)
    return ("GGUF" if dense else "PWRI"), _metadata(request, tensors), tensors


def convert_gguf(
    model: Path,
    predictor_dir: Path | None,
    outfile: Path,
    *,
    outtype: str | None,
    dense: bool,
    activation: Activation | None,
    fatrelu_threshold: float | None,
    quantise: Quantizer = quantize,
    progress: Progress = lambda _: None,
    remark: Remark = lambda _: None,
) -> None:
    """Writes what `plan_gguf` plans; errors as there, and OptionError where `outfile` is the source itself."""
    refuse_source_as_target(model, outfile)
    magic, metadata, tensors = plan_gguf(
        model,
        predictor_dir,
        outtype=outtype,
        dense=dense,
        activation=activation,
        fatrelu_threshold=fatrelu_threshold,
        quantise=quantise,
        remark=remark,
    )
    write_model(outfile, magic, metadata, tensors, progress)


def refuse_source_as_target(model: Path, outfile: Path) -> None:
    """Raises OptionError where writing `outfile` would replace a file of the model that is read."""
    try:
        target = outfile.stat()
    except (OSError, ValueError):
        # Nothing there to replace; a name that no file can have the writer refuses.
        return
    with open_gguf(model) as file:
        if any(os.path.samestat(target, path.stat()) for path in file.paths):
            raise OptionError(f"{printable(str(outfile))}: is the model that is read; name another --outfile")


def _activation(
    file: GGUFFile, layout: Layout, given: Activation | None, threshold: float | None, *, dense: bool
) -> tuple[Activation, float | None]:
    """The FFN's activation and FATReLU's threshold: the caller's word, else the file's, else the architecture's."""
    implied = layout.facts.powerinfer if file.is_powerinfer else layout.facts.dense
    name: str = file.get_str(keys.ACTIVATION, implied) if given is None else given
    path = printable(str(file.path))
    if name not in list(Activation) or (not dense and not Activation(name).is_sparse):
        raise UnsupportedError(
            f"{path}: activation '{printable(name)}' in a {file.magic} file of {layout.architecture}; accepted are "
            "relu, fatrelu and relu2: where the model was trained with one of them, say so with --activation"
        )
    activation = Activation(name)
    if activation in (Activation.DRELU, Activation.SILU) and not layout.facts.gated:
        raise UnsupportedError(f"{path}: activation {activation} needs a gate, {layout.architecture} models have none")
    if activation is not Activation.FATRELU:
        if threshold is not None:
            raise OptionError(f"a FATReLU threshold is given, the activation is {activation}")
        return activation, None
    if threshold is None:
        threshold = file.get_float(keys.FATRELU_THRESHOLD)
    if threshold is None or not (math.isfinite(threshold) and threshold >= 0):
        raise OptionError(f"{path}: fatrelu needs its threshold, a number >= 0; found {threshold}")
    return activation, threshold


def _tensors(request: _Request) -> list[OutputTensor]:
    file = request.file
    planned: list[OutputTensor] = []
    for info in file.tensors.values():
        if _PREDICTOR.fullmatch(info.name) and not request.keeps_predictors:
            continue
        planned.append(_tensor(request, info))
    if request.predictors is not None:
        wanted = GGMLType.F16 if request.outtype is None else OUTPUT_TYPES[request.outtype]
        planned += request.predictors.tensors(lambda cols: type_for_rows(wanted, cols), request.quantise)
    return planned


def _tensor(request: _Request, info: TensorInfo) -> OutputTensor:
    file, quantise = request.file, request.quantise
    name = _name(request, info.name)
    if name != info.name and name.endswith(".weight"):
        rows, cols = info.shape
        ggml_type = _type(request, info, rows)
        chunks = partial(bands.transposed, file, info.name, ggml_type, quantise)
        return OutputTensor(name, ggml_type, (cols, rows), chunks)
    ggml_type = info.ggml_type if request.outtype is None else _type(request, info, info.shape[-1])
    if ggml_type is info.ggml_type:
        return OutputTensor(name, ggml_type, info.shape, partial(bands.copied, file, info.name))
    return OutputTensor(name, ggml_type, info.shape, partial(bands.retyped, file, info.name, ggml_type, quantise))


def _name(request: _Request, name: str) -> str:
    if not request.turns_over:
        return name
    if request.dense:
        return _DOWN_T.sub(r"\1ffn_down.\2", name)
    return _DOWN.sub(r"\1ffn_down_t.\2", name)


def _type(request: _Request, info: TensorInfo, cols: int) -> GGMLType:
    """Type of a tensor whose rows will have `cols` weights: vectors and integers keep theirs."""
    wanted = info.ggml_type
    if len(info.shape) < 2 or wanted not in WEIGHT_TYPES:
        return wanted
    if request.outtype is not None:
        head = keys.OUTPUT if keys.OUTPUT in request.file.tensors else keys.TOKEN_EMBEDDING
        asked = OUTPUT_TYPES[request.outtype]
        wanted = matrix_type(info.name, cols, asked, request.layout.architecture, is_head=info.name == head)
    fitting = type_for_rows(wanted, cols)
    change = f"{wanted.name} becomes {fitting.name} in rows of {cols} weights"
    if fitting is not wanted and change not in request.changes:
        # Once for all layers.
        request.changes.add(change)
        request.remark(f"tensors such as {printable(info.name)}: {change}")
    return fitting


def _metadata(request: _Request, tensors: Iterable[OutputTensor]) -> list[MetadataEntry]:
    """The source's keys in their order, with those of the new file's nature set, and those of its old one left out."""
    # Data is aligned anew, and the parts of a split model become one file.
    dropped = {*SPLIT_KEYS, keys.ALIGNMENT, keys.VRAM_CAPACITY, keys.ACTIVATION, keys.FATRELU_THRESHOLD}
    values: dict[str, tuple[ValueType, int | float | str]] = {}
    facts = request.layout.facts
    if request.activation != (facts.dense if request.dense else facts.powerinfer):
        values[keys.ACTIVATION] = (ValueType.STRING, str(request.activation))
    if request.fatrelu_threshold is not None:
        values[keys.FATRELU_THRESHOLD] = (ValueType.FLOAT32, request.fatrelu_threshold)
    if request.dense or request.predictors is not None:
        dropped.add(keys.SPARSE_THRESHOLD)
    if request.predictors is not None and request.predictors.sparse_threshold is not None:
        values[keys.SPARSE_THRESHOLD] = (ValueType.FLOAT32, request.predictors.sparse_threshold)
    if request.outtype is not None:
        values[keys.FILE_TYPE] = (ValueType.UINT32, FILE_TYPES[OUTPUT_TYPES[request.outtype]])
    entries = request.file.entries
    if QUANTIZATION_VERSION_KEY not in entries and any(BLOCK_LAYOUTS[t.ggml_type].n_weights > 1 for t in tensors):
        values[QUANTIZATION_VERSION_KEY] = (ValueType.UINT32, QUANTIZATION_VERSION)
    kept = {
        key: entry for key, entry in entries.items() if key not in dropped and not key.startswith(keys.GPU_INDEX_PREFIX)
    }
    # Assigning to a key that is there keeps its place.
    kept |= {key: MetadataEntry(key, kind, None, value, 0, 0) for key, (kind, value) in values.items()}
    return list(kept.values())
