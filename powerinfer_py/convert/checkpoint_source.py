"""A checkpoint as a model file: what is to be written, and the writing of it.

Invariant: everything that can be wrong with names, shapes, settings, tokenizer and predictors is found while planning,
before a byte is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from powerinfer_py.config import Activation
from powerinfer_py.convert.bands import FLOAT_TYPES
from powerinfer_py.convert.checkpoint import Checkpoint, open_checkpoint
from powerinfer_py.convert.entries import entry
from powerinfer_py.convert.families import Facts, Family, family_of
from powerinfer_py.convert.file_limits import powerinfer_limits
from powerinfer_py.convert.file_types import (
    FILE_TYPES,
    OUTPUT_TYPES,
    QUANTIZATION_VERSION,
    QUANTIZATION_VERSION_KEY,
)
from powerinfer_py.convert.gguf_source import Remark
from powerinfer_py.convert.output import OutputTensor, Progress, write_model
from powerinfer_py.convert.predictor_tensors import PredictorSource, read_predictors
from powerinfer_py.convert.row_types import matrix_type, type_for_rows
from powerinfer_py.convert.tensor_plan import TensorPlan, plan_tensors
from powerinfer_py.convert.vocabulary import read_vocabulary
from powerinfer_py.errors import OptionError, UnsupportedError, printable
from powerinfer_py.gguf import GGMLType, MetadataEntry, ValueType, keys
from powerinfer_py.gguf.quantisation import Quantizer, quantize

DEFAULT_OUTTYPE = "f16"


@dataclass(frozen=True)
class CheckpointOptions:
    """What the caller wants of a checkpoint.

    outtype: one of OUTPUT_TYPES for every matrix, None for f16. dense: a GGUF without predictors instead of a PWRI.
    vocab_only: the keys alone. pre: the pre-tokenizer's name, None to recognise it.
    """

    outtype: str | None = None
    dense: bool = False
    vocab_only: bool = False
    pre: str | None = None

    @property
    def type_name(self) -> str:
        """The output type with its default."""
        return self.outtype or DEFAULT_OUTTYPE

    @property
    def ggml_type(self) -> GGMLType:
        """Type of the matrices."""
        return OUTPUT_TYPES[self.type_name]


def plan_checkpoint(
    model: Path,
    predictor_dir: Path | None,
    options: CheckpointOptions,
    *,
    predictors: PredictorSource | None = None,
    quantise: Quantizer = quantize,
    remark: Remark = lambda _: None,
) -> tuple[str, list[MetadataEntry], list[OutputTensor]]:
    """Magic, key-values and tensors of the file that the checkpoint in `model` becomes; no weight is read.

    predictor_dir: `model_{i}.pt` of every layer, or `predictors`, which are in no folder; None for a file without.
    remark: told of what a user should know and did not ask for, PowerInfer's own limits among it.

    Raises FileFormatError, UnsupportedError, ModelError or TokenizerError for what is wrong with a file, OptionError
    where the options contradict each other.
    """
    adds_predictors = predictor_dir is not None or predictors is not None
    if options.dense and adds_predictors:
        raise OptionError("a dense file has no predictors: name a predictor folder or --dense, not both")
    if options.vocab_only and adds_predictors:
        raise OptionError("a file of the vocabulary alone has no predictors: name a predictor folder or --vocab-only")
    checkpoint = open_checkpoint(model)
    family = family_of(checkpoint.config)
    facts = family.read(checkpoint.config)
    _refuse_silu_as_sparse(checkpoint, facts, options)
    vocabulary = read_vocabulary(checkpoint.config, model, facts.n_vocab, pre=options.pre, remark=remark)
    if predictor_dir is not None:
        predictors = read_predictors(predictor_dir, facts.n_layer, facts.n_embd, facts.n_ff)
    tensors: list[OutputTensor] = []
    if not options.vocab_only:
        plan = plan_tensors(checkpoint, family, facts, dense=options.dense)
        made = _tensors(plan, family, facts, predictors, options, quantise, remark)
        tensors = [replace(tensor, watches=checkpoint.watches) for tensor in made]
        if not options.dense:
            threshold = facts.fatrelu_threshold
            for limit in powerinfer_limits(family.architecture, facts.n_ff, facts.activation, threshold, tensors):
                remark(limit)
    hyperparameters = _hyperparameters(model, family, facts, predictors, options, tensors)
    return ("GGUF" if options.dense else "PWRI"), [*hyperparameters, *vocabulary], tensors


def convert_checkpoint(
    model: Path,
    predictor_dir: Path | None,
    outfile: Path,
    options: CheckpointOptions,
    *,
    quantise: Quantizer = quantize,
    progress: Progress = lambda _: None,
    remark: Remark = lambda _: None,
) -> None:
    """Writes what `plan_checkpoint` plans; errors as there, NumericalError for a weight that the type cannot hold, and
    OptionError where `outfile` is a file of the checkpoint."""
    refuse_part_as_target(model, outfile)
    refuse_part_as_target(predictor_dir, outfile)
    magic, metadata, tensors = plan_checkpoint(model, predictor_dir, options, quantise=quantise, remark=remark)
    write_model(outfile, magic, metadata, tensors, progress)


def refuse_part_as_target(folder: Path | None, outfile: Path) -> None:
    """Raises OptionError where writing `outfile` would replace a file of `folder` (None: of none) but a model file."""
    if folder is None:
        return
    try:
        is_beside = outfile.parent.resolve() == folder.resolve()
        taken = is_beside and outfile.suffix != ".gguf" and outfile.exists()
    except (OSError, ValueError):
        # A name that no file can have: the writer says so.
        return
    if taken:
        raise OptionError(f"{printable(str(outfile))}: is a file that is read; name another --outfile")


def _refuse_silu_as_sparse(checkpoint: Checkpoint, facts: Facts, options: CheckpointOptions) -> None:
    if not facts.activation.is_sparse and not options.dense:
        raise UnsupportedError(
            f"{printable(str(checkpoint.config.path))}: the activation is {facts.activation}, whose neurons never "
            "rest; accepted are relu and fatrelu, and silu with --dense"
        )


def _tensors(
    plan: TensorPlan,
    family: Family,
    facts: Facts,
    predictors: PredictorSource | None,
    options: CheckpointOptions,
    quantise: Quantizer,
    remark: Remark,
) -> list[OutputTensor]:
    tensors = []
    fallen: dict[tuple[int, GGMLType], str] = {}
    head = keys.OUTPUT if plan.has_output else keys.TOKEN_EMBEDDING
    for recipe in plan.recipes:
        cols, ggml_type = recipe.shape[-1], GGMLType.F32
        if len(recipe.shape) > 1:
            is_head = recipe.name == head
            wanted = matrix_type(recipe.name, cols, options.ggml_type, family.architecture, is_head=is_head)
            ggml_type = type_for_rows(wanted, cols)
            if ggml_type is not wanted:
                fallen.setdefault((cols, wanted), recipe.name)
        tensors.append(OutputTensor(recipe.name, ggml_type, recipe.shape, partial(recipe.chunks, ggml_type, quantise)))
    for (cols, wanted), name in fallen.items():
        remark(f"tensors such as {name}: {wanted.name} becomes F16, their rows have {cols} weights")
    if facts.rope_factors is not None:
        tensors.append(_rope_frequencies(facts.rope_factors))
    if predictors is not None:
        tensors += predictors.tensors(lambda cols: type_for_rows(options.ggml_type, cols), quantise)
    return tensors


def _rope_frequencies(factors: Sequence[float]) -> OutputTensor:
    values = np.asarray(factors, "<f4")
    return OutputTensor(keys.ROPE_FREQUENCIES, GGMLType.F32, values.shape, lambda: [values])


def _hyperparameters(
    model: Path,
    family: Family,
    facts: Facts,
    predictors: PredictorSource | None,
    options: CheckpointOptions,
    tensors: list[OutputTensor],
) -> Iterator[MetadataEntry]:
    yield entry(keys.ARCHITECTURE, family.architecture, ValueType.STRING)
    yield entry(keys.NAME, printable(model.resolve().name), ValueType.STRING)
    yield from facts.entries
    yield entry(keys.FILE_TYPE, FILE_TYPES[options.ggml_type], ValueType.UINT32)
    if any(tensor.ggml_type not in FLOAT_TYPES for tensor in tensors):
        yield entry(QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION, ValueType.UINT32)
    implied = family.dense_activation if options.dense else family.powerinfer_activation
    if facts.activation is not implied:
        yield entry(keys.ACTIVATION, str(facts.activation), ValueType.STRING)
    if facts.activation is Activation.FATRELU:
        yield entry(keys.FATRELU_THRESHOLD, facts.fatrelu_threshold, ValueType.FLOAT32)
    if predictors is not None and predictors.sparse_threshold is not None:
        yield entry(keys.SPARSE_THRESHOLD, predictors.sparse_threshold, ValueType.FLOAT32)


def default_outfile(model: Path, options: CheckpointOptions) -> Path:
    """A name among the checkpoint's own files: folder, type and kind."""
    kind = "gguf" if options.dense else "powerinfer.gguf"
    what = "vocab" if options.vocab_only else options.type_name
    return model / f"{model.resolve().name}-{what}.{kind}"
