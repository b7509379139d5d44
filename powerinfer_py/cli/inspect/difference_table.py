"""A `Difference` as tables for a terminal. Every string of the files passes through `printable` before it is shown."""

from __future__ import annotations

from collections.abc import Iterable

from powerinfer_py.cli.inspect.difference import Difference, KeyDifference, KeyLine, TensorDescription, TensorDifference
from powerinfer_py.cli.tables import key_value_table, make_console, make_table

_KEY_COLUMNS = (("key", "left"), ("type", "left"), ("value", "left"))
_CHANGED_KEY_COLUMNS = (("key", "left"), ("A", "left"), ("B", "left"), ("from", "right"))
_TENSOR_COLUMNS = (("tensor", "left"), ("type", "left"), ("shape", "right"))
_CHANGED_TENSOR_COLUMNS = (*_TENSOR_COLUMNS, ("NMSE", "right"), ("largest", "right"), ("remark", "left"))


def print_difference(difference: Difference) -> None:
    """Prints to stdout: what differs, then the counts."""
    console = make_console()
    rows = [("A", path) for path in difference.paths_a] + [("B", path) for path in difference.paths_b]
    if difference.magic_a != difference.magic_b:
        rows.append(("magic", f"{difference.magic_a} in A, {difference.magic_b} in B"))
    console.print(key_value_table(rows))
    for side, key_lines in (("A", difference.keys_only_in_a), ("B", difference.keys_only_in_b)):
        if key_lines:
            console.print(make_table(f"Keys only in {side}", _KEY_COLUMNS, map(_key_row, key_lines)))
    if difference.keys:
        console.print(make_table("Keys that differ", _CHANGED_KEY_COLUMNS, map(_changed_key_row, difference.keys)))
    for side, lines in (("A", difference.tensors_only_in_a), ("B", difference.tensors_only_in_b)):
        if lines:
            console.print(make_table(f"Tensors only in {side}", _TENSOR_COLUMNS, map(_tensor_row, lines)))
    if difference.tensors:
        rows_of_tensors = map(_changed_tensor_row, difference.tensors)
        console.print(make_table("Tensors that differ", _CHANGED_TENSOR_COLUMNS, rows_of_tensors))
    console.print(key_value_table(_counts(difference)))


def _counts(difference: Difference) -> Iterable[tuple[str, str]]:
    yield (
        "keys",
        f"{difference.n_equal_keys} equal, {len(difference.keys)} differ, {len(difference.keys_only_in_a)} only in A, "
        f"{len(difference.keys_only_in_b)} only in B",
    )
    yield (
        "tensors",
        f"{difference.n_equal_tensors} equal, {len(difference.tensors)} differ, "
        f"{len(difference.tensors_only_in_a)} only in A, {len(difference.tensors_only_in_b)} only in B",
    )
    errors = [(float(line.nmse), line.a.name) for line in difference.tensors if line.nmse is not None]
    if errors:
        largest, name = max(errors)
        yield ("largest NMSE", f"{largest:.3g} ({name})")
    yield ("equal", "yes" if difference.equal else "no")


def _key_row(line: KeyLine) -> tuple[str, ...]:
    return line.key, line.type, line.value


def _changed_key_row(line: KeyDifference) -> tuple[str, ...]:
    sides = []
    for type_name, length, value in ((line.type_a, line.length_a, line.a), (line.type_b, line.length_b, line.b)):
        kind = "" if line.type_a == line.type_b else f"{type_name}: "
        size = "" if length is None or line.length_a == line.length_b else f"{length} long: "
        sides.append(f"{kind}{size}{value}")
    return line.key, *sides, "" if line.first_difference is None else str(line.first_difference)


def _tensor_row(line: TensorDescription) -> tuple[str, ...]:
    return line.name, line.type, _shape(line.shape)


def _changed_tensor_row(line: TensorDifference) -> tuple[str, ...]:
    a, b = line.a, line.b
    remarks = []
    if a.name != b.name:
        remarks.append(f"{b.name} in B{', transposed' if line.transposed else ''}")
    if line.n_not_finite:
        remarks.append(f"{line.n_not_finite} values not finite")
    return (
        a.name,
        a.type if a.type == b.type else f"{a.type} / {b.type}",
        _shape(a.shape) if a.shape == b.shape or line.transposed else f"{_shape(a.shape)} / {_shape(b.shape)}",
        _figure(line.nmse),
        _figure(line.largest),
        ", ".join(remarks),
    )


def _shape(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _figure(value: float | str | None) -> str:
    return "-" if value is None else f"{float(value):.3g}"
