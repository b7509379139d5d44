"""One call of `powerinfer-gpuidx`: the model, the split, its file, the report."""

from __future__ import annotations

import argparse
from pathlib import Path

from powerinfer_py.cli.gpuidx.model_folder import model_file
from powerinfer_py.cli.gpuidx.output import print_json, print_split
from powerinfer_py.cli.gpuidx.plot import draw_split
from powerinfer_py.cli.gpuidx.split import Split, make_split
from powerinfer_py.cli.streams import remark
from powerinfer_py.gguf import fingerprint, open_gguf
from powerinfer_py.output_files import require_writable
from powerinfer_py.placement.gpuidx import write_gpu_index
from powerinfer_py.placement.index_files import IndexPaths
from powerinfer_py.profiler.plot import require_picture


def execute(arguments: argparse.Namespace) -> int:
    """The exit code. Raises PowerInferError."""
    picture = None if arguments.plot is None else Path(arguments.plot)
    if picture is not None:
        require_picture(picture)
    if arguments.output is not None and not arguments.dry_run:
        require_writable(Path(arguments.output))
    model = model_file(Path(arguments.model))
    with open_gguf(model) as file:
        split = make_split(file, model, arguments)
        identity = fingerprint(file)
    written, notices = _write(split, identity, arguments)
    if picture is not None:
        draw_split(split, picture)
    for notice in (*split.notices, *notices):
        remark(notice)
    if arguments.json:
        print_json(split, written)
    else:
        print_split(split, written)
    return 0


def _write(split: Split, identity: str, arguments: argparse.Namespace) -> tuple[Path | None, list[str]]:
    if arguments.dry_run:
        return None, []
    if arguments.output is not None:
        write_gpu_index(Path(arguments.output), split.index)
        return Path(arguments.output), []
    return IndexPaths.of(split.model, identity).save(split.index)
