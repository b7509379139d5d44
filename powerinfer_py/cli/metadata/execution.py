"""`set` and `new` carried out: show what would change, ask where that is due, write.

Invariant: nothing is written before it was shown, nor where --dry-run was given or the user did not agree.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from powerinfer_py.cli.command import EXIT_ERROR
from powerinfer_py.cli.metadata.changes import wanted_values
from powerinfer_py.cli.metadata.confirmation import confirm
from powerinfer_py.cli.progress import byte_progress
from powerinfer_py.cli.streams import remark
from powerinfer_py.errors import FileFormatError, OptionError, printable
from powerinfer_py.gguf import GGUFFile, MetadataEntry, open_gguf
from powerinfer_py.gguf.edited_copy import SPLIT_KEYS, edited_entries, write_edited
from powerinfer_py.gguf.scalar_edit import apply_scalar, plan_scalar
from powerinfer_py.gguf.value_text import show_value
from powerinfer_py.output_files import require_writable


def run_set(arguments: argparse.Namespace) -> int:
    """One value in place."""
    edit = plan_scalar(arguments.file, arguments.key, arguments.value)
    shown = printable(str(edit.path))
    print(f"{shown}: {printable(edit.key)} ({edit.type.name}): {edit.before} -> {edit.after}", flush=True)
    if not edit.changes:
        remark("nothing to change")
    elif arguments.dry_run:
        remark("dry run: nothing was written")
    elif arguments.force or confirm(f"Write {len(edit.new_bytes)} bytes at {edit.offset} of {shown}?"):
        apply_scalar(edit)
    else:
        remark("nothing was written")
        return EXIT_ERROR
    return 0


def run_new(arguments: argparse.Namespace) -> int:
    """A copy with other keys."""
    if not arguments.dry_run:
        require_writable(Path(arguments.output))
    with open_gguf(arguments.input) as file:
        entries = edited_entries(file, wanted_values(arguments, file), arguments.remove_metadata)
        for line in _differences(file, entries):
            print(line, flush=True)
        if len(file.paths) > 1:
            remark(f"the {len(file.paths)} files of the split model become one, without {', '.join(SPLIT_KEYS)}")
        if arguments.dry_run:
            remark("dry run: nothing was written")
            return 0
        if not _may_write(Path(arguments.output), file, force=arguments.force):
            remark("nothing was written")
            return EXIT_ERROR
        total = sum(info.n_bytes for info in file.tensors.values())
        with byte_progress("writing", total) as progress:
            write_edited(file, arguments.output, entries, progress)
    return 0


def _differences(file: GGUFFile, entries: Sequence[MetadataEntry]) -> Iterator[str]:
    after = {entry.key: entry for entry in entries}
    for key, entry in file.entries.items():
        if key not in after:
            yield f"{printable(key)} ({entry.type_name}): {show_value(entry)} -> removed"
        elif after[key] is not entry:
            new = after[key]
            was = "" if new.type is entry.type else f", was {entry.type_name}"
            yield f"{printable(key)} ({new.type_name}{was}): {show_value(entry)} -> {show_value(new)}"
    for key, entry in after.items():
        if key not in file.entries:
            yield f"{printable(key)} ({entry.type_name}): added: {show_value(entry)}"


def _may_write(target: Path, file: GGUFFile, *, force: bool) -> bool:
    try:
        exists = target.exists()
        is_source = exists and any(target.samefile(path) for path in file.paths)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no possible file name"
        raise FileFormatError(f"cannot write: {reason}", path=target) from None
    if is_source and len(file.paths) > 1:
        raise OptionError(f"{printable(str(target))} is a part of the split model that is read; name another file")
    return not exists or force or confirm(f"Replace {printable(str(target))}?")
