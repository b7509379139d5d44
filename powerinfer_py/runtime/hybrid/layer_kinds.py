"""Layers that do the same work: tensors of the same names, types and shapes."""

from __future__ import annotations

from powerinfer_py.gguf import GGUFFile

# Of each tensor of a layer its name there, its type and its shape.
LayerKind = tuple[tuple[str, str, tuple[int, ...]], ...]


def layer_kinds(file: GGUFFile, n_layer: int) -> list[LayerKind]:
    """The kind of each layer of a model."""
    tensors: list[list[tuple[str, str, tuple[int, ...]]]] = [[] for _ in range(n_layer)]
    for name, info in file.tensors.items():
        prefix, _, rest = name.partition(".")
        number, _, short = rest.partition(".")
        if prefix == "blk" and short and number.isascii() and number.isdigit() and int(number) < n_layer:
            tensors[int(number)].append((short, str(info.ggml_type), tuple(info.shape)))
    return [tuple(sorted(layer)) for layer in tensors]


def alike(kinds: list[LayerKind], wanted: int) -> range:
    """At most `wanted` consecutive layers of the commonest kind, the first ones where there are several such runs."""
    most = max(kinds, key=kinds.count)
    runs, start = [range(0)], 0
    for end in range(1, len(kinds) + 1):
        if end == len(kinds) or kinds[end] != kinds[start]:
            if kinds[start] == most:
                runs.append(range(start, min(end, start + wanted)))
            start = end
    return max(runs, key=len)
