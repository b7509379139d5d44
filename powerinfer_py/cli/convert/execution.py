"""What the parsed options ask for, done: the kind of source found by its first bytes, planned, then listed or written.

Both kinds of source give the same plan, so everything after planning is shared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from powerinfer_py.cli.progress import byte_progress
from powerinfer_py.cli.streams import remark
from powerinfer_py.config import Activation
from powerinfer_py.convert.checkpoint_source import (
    CheckpointOptions,
    default_outfile,
    plan_checkpoint,
    refuse_part_as_target,
)
from powerinfer_py.convert.gguf_source import plan_gguf, refuse_source_as_target
from powerinfer_py.convert.output import OutputTensor, total_bytes, write_model
from powerinfer_py.convert.predictor_tensors import PredictorSource
from powerinfer_py.convert.regular_file import open_regular
from powerinfer_py.errors import FileFormatError, OptionError, printable
from powerinfer_py.gguf import MetadataEntry, open_gguf
from powerinfer_py.gguf.quantisation import Quantizer
from powerinfer_py.output_files import require_writable

_MAGICS = (b"GGUF", b"PWRI")


@dataclass(frozen=True)
class Plan:
    """A file to be written."""

    outfile: Path
    magic: str
    metadata: list[MetadataEntry]
    tensors: list[OutputTensor]


@dataclass(frozen=True)
class Report:
    """What was written, or would be. n_bytes: of tensor data. seconds: None where nothing was written."""

    outfile: str
    magic: str
    n_keys: int
    n_tensors: int
    n_bytes: int
    seconds: float | None


def execute(arguments: argparse.Namespace) -> None:
    """Converts as `cli.convert.build_parser` reads it. Raises PowerInferError for what a user can mend."""
    plan = make_plan(arguments, _quantizer(arguments.threads))
    if arguments.dry_run:
        _print_plan(plan, as_json=arguments.json)
        return
    n_bytes = total_bytes(plan.tensors)
    start = time.perf_counter()
    with byte_progress(f"writing {printable(plan.outfile.name, 40)}", n_bytes) as advance:
        write_model(plan.outfile, plan.magic, plan.metadata, plan.tensors, advance)
    seconds = time.perf_counter() - start
    if arguments.json:
        print(json.dumps(asdict(_report(plan, seconds))))
    else:
        rate = n_bytes / 1e6 / max(seconds, 1e-9)
        remark(f"wrote {printable(str(plan.outfile), 400)}: {n_bytes / 1e6:.1f} MB in {seconds:.1f} s, {rate:.0f} MB/s")


def make_plan(arguments: argparse.Namespace, quantise: Quantizer) -> Plan:
    """The source checked and the file planned; nothing is written."""
    # An empty name is a variable that was not set; Path makes the working folder of it.
    if "" in arguments.paths or arguments.outfile == "":
        raise OptionError("an empty file name")
    model = Path(arguments.paths[0])
    predictors = Path(arguments.paths[1]) if len(arguments.paths) > 1 else None
    made = None if arguments.predictor is None else _svd_predictors(arguments, model, quantise)
    if is_model_file(model):
        return _plan_gguf(arguments, model, predictors, made, quantise)
    return _plan_checkpoint(arguments, model, predictors, made, quantise)


def _svd_predictors(arguments: argparse.Namespace, model: Path, quantise: Quantizer) -> PredictorSource:
    """Predictors from the rows of the model as it would be in F32; those rows are read when it is their turn."""
    # torch takes a second to import, which conversions without predictors need not wait for.
    from powerinfer_py.predictor.row_source import bytes_without_predictors, source_of_plan
    from powerinfer_py.predictor.untrained import DEFAULT_BUDGET, SvdPredictors

    if is_model_file(model):
        _, metadata, tensors = plan_gguf(
            model, None, outtype="f32", dense=False, **_stated_activation(arguments), quantise=quantise
        )
        with open_gguf(model) as file:
            n_bytes = bytes_without_predictors(file)
    else:
        _, metadata, tensors = plan_checkpoint(model, None, CheckpointOptions("f32"), quantise=quantise)
        # As in F16, the type that predictors are counted in.
        n_bytes = total_bytes(tensors) // 2
    return SvdPredictors(
        source_of_plan(metadata, tensors, n_bytes),
        hidden_units=None if arguments.predictor_rank == "auto" else arguments.predictor_rank,
        budget=DEFAULT_BUDGET if arguments.predictor_budget is None else arguments.predictor_budget,
        remark=remark,
    )


def _stated_activation(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line says of a GGUF model's activation, as keywords of `plan_gguf`."""
    name = arguments.activation
    return {
        "activation": None if name is None else Activation(name),
        "fatrelu_threshold": arguments.fatrelu_threshold,
    }


def is_model_file(path: Path) -> bool:
    """Whether `path` is a GGUF or PWRI file by its first bytes, False for a folder. Raises FileFormatError else."""
    try:
        if path.is_dir():
            return False
        with open_regular(path) as file:
            magic = file.read(4)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no possible file name"
        raise FileFormatError(f"cannot read: {reason}", path=path) from None
    if magic not in _MAGICS:
        raise FileFormatError("neither a folder with a checkpoint nor a GGUF file", path=path)
    return True


def _plan_gguf(
    arguments: argparse.Namespace,
    model: Path,
    predictors: Path | None,
    made: PredictorSource | None,
    quantise: Quantizer,
) -> Plan:
    for given, name in ((arguments.vocab_only, "--vocab-only"), (arguments.pre is not None, "--pre")):
        if given:
            raise OptionError(f"{name} is for checkpoints; change the keys of a GGUF file with powerinfer-metadata")
    kind = "-dense.gguf" if arguments.dense else ".powerinfer.gguf"
    stem = model.name.removesuffix(".gguf").removesuffix(".powerinfer")
    outfile = Path(arguments.outfile) if arguments.outfile is not None else model.with_name(stem + kind)
    refuse_source_as_target(model, outfile)
    refuse_part_as_target(predictors, outfile)
    _refuse_unwritable(arguments, outfile)
    magic, metadata, tensors = plan_gguf(
        model,
        predictors,
        outtype=arguments.outtype,
        dense=arguments.dense,
        **_stated_activation(arguments),
        predictors=made,
        quantise=quantise,
        remark=remark,
    )
    return Plan(outfile, magic, metadata, tensors)


def _plan_checkpoint(
    arguments: argparse.Namespace,
    model: Path,
    predictors: Path | None,
    made: PredictorSource | None,
    quantise: Quantizer,
) -> Plan:
    if arguments.activation is not None or arguments.fatrelu_threshold is not None:
        raise OptionError("--activation and --fatrelu-threshold are for GGUF files; a checkpoint's config.json says it")
    _refuse_unknown_pre_tokenizer(arguments.pre)
    options = CheckpointOptions(arguments.outtype, arguments.dense, arguments.vocab_only, arguments.pre)
    outfile = Path(arguments.outfile) if arguments.outfile is not None else default_outfile(model, options)
    refuse_part_as_target(model, outfile)
    refuse_part_as_target(predictors, outfile)
    _refuse_unwritable(arguments, outfile)
    magic, metadata, tensors = plan_checkpoint(
        model, predictors, options, predictors=made, quantise=quantise, remark=remark
    )
    return Plan(outfile, magic, metadata, tensors)


def _refuse_unwritable(arguments: argparse.Namespace, outfile: Path) -> None:
    """Before predictors are read, which may take minutes."""
    if not arguments.dry_run:
        require_writable(outfile)


def _refuse_unknown_pre_tokenizer(name: str | None) -> None:
    from powerinfer_py.tokenizer.pretokenizers import PRE_TOKENIZERS

    if name is not None and name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise OptionError(f"--pre: no pre-tokenizer is called '{printable(name)}'; there are: {known}")


def _quantizer(threads: int | None) -> Quantizer:
    """The native one where it was built; a slower one says so."""
    from powerinfer_py.kernels.quantisation import make_quantizer

    quantise = make_quantizer(threads)
    notice = getattr(quantise, "notice", None)
    if notice is not None:
        remark(notice)
    return quantise


def _report(plan: Plan, seconds: float | None) -> Report:
    return Report(
        outfile=str(plan.outfile),
        magic=plan.magic,
        n_keys=len(plan.metadata),
        n_tensors=len(plan.tensors),
        n_bytes=total_bytes(plan.tensors),
        seconds=None if seconds is None else round(seconds, 3),
    )


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(_report(plan, None)), "tensors": list(map(_fields, plan.tensors))}))
        return
    lines = [f"{plan.magic} file {printable(str(plan.outfile), 400)}, {len(plan.metadata)} keys:"]
    lines += [f"  {entry.key} = {_short(entry)}" for entry in plan.metadata]
    lines.append(f"{len(plan.tensors)} tensors:")
    lines += [
        f"  {tensor.name:34} {tensor.ggml_type.name:5} {' x '.join(map(str, tensor.shape)):>16} {tensor.n_bytes:>14}"
        for tensor in plan.tensors
    ]
    lines.append(f"{total_bytes(plan.tensors)} bytes of tensors; nothing was written")
    print("\n".join(lines))


def _fields(tensor: OutputTensor) -> dict[str, object]:
    return {
        "name": tensor.name,
        "type": tensor.ggml_type.name,
        "shape": list(tensor.shape),
        "n_bytes": tensor.n_bytes,
    }


def _short(entry: MetadataEntry) -> str:
    if entry.element_type is not None and isinstance(entry.value, Sequence):
        return f"{len(entry.value)} elements"
    return printable(str(entry.value), 80)
