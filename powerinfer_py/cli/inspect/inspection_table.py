"""An `Inspection` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from powerinfer_py.cli.inspect.gpu_index import GpuIndexReport
from powerinfer_py.cli.inspect.inspection import Inspection, MetadataLine, Share
from powerinfer_py.cli.tables import key_value_table, make_console, make_table, size_text
from powerinfer_py.gguf.tensor_check import TensorFault


def print_inspection(inspection: Inspection, *, tensors: bool) -> None:
    """Prints to stdout; `tensors` adds one line a tensor."""
    console = make_console()
    console.print(_summary(inspection))
    if inspection.gpu_index is not None:
        _print_gpu_index(console, inspection.gpu_index)
    if inspection.types:
        console.print(_share_table("Tensor types", inspection.types))
    if inspection.types and inspection.gpu_index is None:
        console.print(_share_table("Parts of the model", inspection.parts))
    if inspection.metadata:
        rows = ((line.key, line.type, _shown(line)) for line in inspection.metadata)
        console.print(make_table("Metadata", (("key", "left"), ("type", "left"), ("value", "left")), rows))
    if tensors:
        _print_tensors(console, inspection)


def print_faults(faults: Sequence[TensorFault]) -> None:
    """One line for each kind of fault in a tensor, or that there is none."""
    console = make_console()
    if not faults:
        console.print("Check of tensors: nothing found")
        return
    rows = (
        (fault.tensor, fault.fault, f"{fault.n} {'blocks' if fault.in_blocks else 'weights'}", str(fault.first))
        for fault in faults
    )
    columns = (("tensor", "left"), ("fault", "left"), ("how many", "right"), ("first", "right"))
    console.print(make_table("Check of tensors", columns, rows))


def _summary(inspection: Inspection) -> Table:
    rows: list[tuple[str, str]] = [("file", path) for path in inspection.paths]
    rows += [
        ("kind", f"{inspection.kind} ({inspection.magic} version {inspection.version})"),
        ("size", f"{size_text(inspection.n_bytes)} ({inspection.n_bytes} bytes)"),
        ("fingerprint", inspection.fingerprint),
        ("architecture", inspection.architecture or "not stated"),
    ]
    if inspection.name is not None:
        rows.append(("name", inspection.name))
    if inspection.gpu_index is None:
        rows += _model_rows(inspection)
    return key_value_table(rows)


def _model_rows(inspection: Inspection) -> list[tuple[str, str]]:
    tokenizer, predictor = inspection.tokenizer, inspection.predictor
    threshold = inspection.sparse_threshold
    rows = [("weights", f"{inspection.n_weights:,}")]
    rows += [(key, str(value)) for key, value in inspection.hyperparameters.items()]
    if inspection.activation is None:
        rows.append(("activation", "unknown"))
    else:
        rows.append(("activation", f"{inspection.activation} ({inspection.activation_source})"))
    if predictor is None:
        rows.append(("predictors", "none"))
    else:
        rows.append(("predictors", f"{predictor.n_layers} layers, rank {predictor.rank_min} to {predictor.rank_max}"))
        rows.append(("sparse threshold", "0.0 (default)" if threshold is None else str(threshold)))
    if tokenizer is None:
        rows.append(("tokenizer", "none"))
    else:
        pre = "" if tokenizer.pre is None else f", pre-tokenizer {tokenizer.pre}"
        merges = f", {tokenizer.n_merges} merges" if tokenizer.n_merges else ""
        template = ", chat template" if tokenizer.has_chat_template else ""
        rows.append(("tokenizer", f"{tokenizer.model}{pre}, {tokenizer.n_tokens} tokens{merges}{template}"))
    return rows


def _print_gpu_index(console: Console, report: GpuIndexReport) -> None:
    rows = [
        ("capacity", "not stated" if report.vram_capacity is None else f"{report.vram_capacity} bytes"),
        ("neurons on the GPU", f"{report.n_gpu} of {report.n_neurons} ({report.fraction:.1%})"),
        ("gpu_idx agrees with gpu_bucket", "yes" if report.agrees else "NO"),
        *(("fault", fault) for fault in report.faults),
        *((key, str(value)) for key, value in report.solved_for.items()),
    ]
    console.print(make_table("GPU index", (("", "left"), ("", "left")), rows))
    layers = (
        (
            str(layer.layer),
            str(layer.n_neurons),
            str(layer.n_gpu),
            f"{layer.fraction:.1%}",
            "; ".join(layer.faults) or "ok",
        )
        for layer in report.layers
    )
    columns = (("layer", "right"), ("neurons", "right"), ("on the GPU", "right"), ("share", "right"), ("check", "left"))
    console.print(make_table("Layers", columns, layers))


def _print_tensors(console: Console, inspection: Inspection) -> None:
    rows = (
        (
            line.name,
            line.type,
            " x ".join(map(str, line.shape)),
            str(line.n_bytes),
            str(line.offset),
            str(line.file_index),
        )
        for line in inspection.tensors
    )
    columns = (
        ("tensor", "left"),
        ("type", "left"),
        ("shape", "right"),
        ("bytes", "right"),
        ("offset", "right"),
        ("file", "right"),
    )
    console.print(make_table("Tensors", columns, rows))


def _share_table(title: str, shares: list[Share]) -> Table:
    columns = (("", "left"), ("tensors", "right"), ("bytes", "right"), ("size", "right"), ("share", "right"))
    rows = (
        (share.name, str(share.n_tensors), str(share.n_bytes), size_text(share.n_bytes), f"{share.fraction:.1%}")
        for share in shares
    )
    return make_table(title, columns, rows)


def _shown(line: MetadataLine) -> str:
    if not isinstance(line.value, list):
        return str(line.value)
    rest = ", ..." if line.length is not None and line.length > len(line.value) else ""
    return f"{line.length} elements: [{', '.join(repr(element) for element in line.value)}{rest}]"
