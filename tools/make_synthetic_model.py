"""Makes a model of any shape, weight type and share of firing neurons, to measure speed without anybody's weights.

    python tools/make_synthetic_model.py m.powerinfer.gguf --shape relullama-7b --layers 8 --dense-twin dense.gguf

Nothing it says means anything. What it keeps: sizes, types and tensor names are those of a real model of the shape; for
each token another set of neurons fires, the share asked for on average, most often the hot ones; the predictors find
nearly all of them (`synthetic_firing.py` says how). Greedy text never repeats itself: the head's row of each ordinary
token is the embedding of the token before it, so that decoding walks through the vocabulary, in every engine.

The dense twin has the same shape and type with plain random rows, as a file for llama.cpp: an ordinary SiLU llama (for
bamboo too, whose graph llama.cpp lacks), or the architecture's own graph. PowerInfer runs F16 and Q4_0 files of the
architectures llama, bamboo and falcon with more than 1000 neurons a layer.

Layers add little to the residual stream (`ADDED_VARIANCE`), so that which neurons fire can be foreseen. Files are
written tensor by tensor; memory holds pools of random values (150 MB for 7B shapes in F16).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from synthetic_blocks import WEIGHT_TYPES, Bytes, Floats, Pool, constant_groups, group_size
from synthetic_firing import SAMPLED_TOKENS, Channels, Firing, FiringRows, Hotness
from synthetic_shapes import (
    FIRST_ORDINARY,
    LAYER_NORM,
    SHAPES,
    Shape,
    attention_shapes,
    bias_shapes,
    norm_names,
    write_metadata,
)

from powerinfer_py.errors import OptionError, PowerInferError
from powerinfer_py.gguf import GGMLType, GGUFWriter
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, row_bytes

# Variance that all layers together add to the residual stream, relative to the embedding's.
ADDED_VARIANCE = 0.02
# Rough mean square of an active neuron's hidden value; only its order matters, since layers are to add little.
HIDDEN_VARIANCE = {"llama": 2.0, "bamboo": 40.0, "falcon": 2.0, "opt": 2.0, "arcee": 15.0}
# Where an up row has to be positive whenever the gate fires (dReLU): deviations above 0.
UP_OFFSET = 4.0
# Logit of the next token of the walk; all others have a deviation of this over sqrt(n_embd).
NEXT_LOGIT = 20.0
CHUNK_BYTES = 4 << 20
WEIGHT_POOL = 1 << 21
MakeRows = Callable[[slice], Bytes]


@dataclass(frozen=True)
class Tensor:
    """A tensor to be written: `make(rows)` gives the bytes of those rows."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    make: MakeRows

    def chunks(self) -> Iterator[Bytes]:
        """All bytes in order."""
        n_rows = self.shape[0] if len(self.shape) == 2 else 1
        step = max(1, CHUNK_BYTES // row_bytes(self.type, self.shape[-1]))
        for start in range(0, n_rows, step):
            yield np.ascontiguousarray(self.make(slice(start, min(n_rows, start + step))))


class Maker:
    """One model's random values. shape, ggml_type: of all matrices but head and predictors, see `head_type`."""

    def __init__(self, shape: Shape, ggml_type: GGMLType, active: float, ranks: tuple[int, ...], seed: int) -> None:
        self.shape = shape
        self.type = ggml_type
        self.active = active
        self.ranks = ranks
        self.seed = seed
        self.head_type = head_type(shape, ggml_type)
        self.predictor_type = ggml_type if ggml_type.name in ("F32", "F16", "BF16", "Q4_0") else GGMLType.Q8_0
        self.channels = Channels.fitting(shape.n_embd, min(ranks), ggml_type)
        unit = max(group_size(ggml_type), group_size(self.head_type))
        longest = max(shape.n_embd, shape.n_ff)
        self.weights = Pool.random(self.rng("weights"), (WEIGHT_POOL + longest) // unit, unit)
        n_units = shape.n_vocab + shape.n_embd // unit
        self.embeddings = Pool.random(self.rng("embeddings"), n_units, unit)
        self.embedding_places = self.rng("vocabulary").permutation(shape.n_vocab) * unit
        self.hotness = Hotness.power_law(shape.n_ff, active)
        self.rows = FiringRows(self.channels, self.weights, ggml_type, self.predictor_type)
        self._fc1 = {rank: self.rows.fc1(rank) for rank in set(ranks)}
        self._planned: tuple[int, Firing] | None = None

    def rng(self, *key: str | int) -> np.random.Generator:
        """A generator for one purpose, so that no tensor depends on which others were made."""
        return np.random.default_rng([self.seed, *"/".join(map(str, key)).encode()])

    def tensors(self, sparse: bool) -> Iterator[Tensor]:
        """Every tensor; sparse: of the PWRI file, else of its dense twin. Bytes are made as they are asked for."""
        n, n_vocab = self.shape.n_embd, self.shape.n_vocab
        yield Tensor("token_embd.weight", self.type, (n_vocab, n), self._embedding_rows)
        if self.shape.architecture == "opt":
            yield self._constant("position_embd.weight", self.type, (self.shape.n_ctx + 2, n), 0.0)
        yield from self._norm("output_norm")
        yield Tensor("output.weight", self.head_type, (n_vocab, n), self._head_rows)
        for layer in range(self.shape.n_layer):
            yield from self._attention(layer)
            yield from self._feed_forward(layer) if sparse else self._dense_feed_forward(layer)

    def _firing(self, layer: int) -> Firing:
        """The plan of a layer's neurons, kept until another layer's is asked for."""
        if self._planned is None or self._planned[0] != layer:
            x = self.sampled_residual(layer)
            plan = self.rows.plan(self.rng(layer, "neurons"), self.hotness, x, self.normed(x))
            self._planned = (layer, plan)
        return self._planned[1]

    def sampled_residual(self, layer: int) -> Floats:
        """What the residual stream of random tokens looks like before a layer's FFN: (SAMPLED_TOKENS, n_embd)."""
        rng, c = self.rng(layer, "residual"), self.channels
        n_added = layer if self.shape.architecture == "falcon" else layer + 0.5
        added = (ADDED_VARIANCE * n_added / self.shape.n_layer) ** 0.5
        tokens = rng.integers(FIRST_ORDINARY, self.shape.n_vocab, SAMPLED_TOKENS)
        cols = c.n_embd - c.n_constant
        x = np.full((SAMPLED_TOKENS, c.n_embd), c.amplitude, np.float32)
        places = self.embedding_places[tokens] + c.n_constant
        x[:, c.n_constant :] = self.embeddings.decoded_rows(places, cols, self.type, c.amplitude)
        x[:, c.n_constant :] += rng.standard_normal((SAMPLED_TOKENS, cols), np.float32) * (added * c.amplitude)
        return x

    def normed(self, x: Floats) -> Floats:
        """RMSNorm or LayerNorm with weights of 1."""
        if self.shape.architecture in LAYER_NORM:
            x = x - x.mean(axis=1, keepdims=True)
        result: Floats = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))
        return result

    @property
    def _added_scale(self) -> float:
        """Deviation of what attention or an FFN adds to a channel."""
        return float(self.channels.amplitude * (ADDED_VARIANCE / (2 * self.shape.n_layer)) ** 0.5)

    def _embedding_rows(self, rows: slice) -> Bytes:
        c = self.channels
        places = self.embedding_places[rows] + c.n_constant
        constant = constant_groups(np.full(len(places), c.amplitude, np.float32), self.type)
        windows = self.embeddings.rows(places, c.n_embd - c.n_constant, self.type, c.amplitude)
        return np.concatenate([constant, windows], axis=1)

    def _head_rows(self, rows: slice) -> Bytes:
        """The embedding of the token before, in a circle of the ordinary ones; zeros for the others."""
        n = self.shape.n_embd
        ids = np.arange(self.shape.n_vocab)[rows]
        before = np.where(ids == FIRST_ORDINARY, self.shape.n_vocab - 1, ids - 1)
        made = self.embeddings.rows(self.embedding_places[before], n, self.head_type, NEXT_LOGIT / n)
        made[ids < FIRST_ORDINARY] = 0
        return made

    def _attention(self, layer: int) -> Iterator[Tensor]:
        shape, block = self.shape, f"blk.{layer}."
        for name in norm_names(shape):
            yield from self._norm(block + name)
        for name, (rows, cols) in attention_shapes(shape).items():
            yield self._random(f"{block}{name}.weight", (rows, cols), cols**-0.5)
        n = shape.n_embd
        yield self._random(f"{block}attn_output.weight", (n, n), self._added_scale * n**-0.5, silent_rows=True)
        for name, length in bias_shapes(shape, "").items():
            if name.startswith("attn"):
                yield self._constant(f"{block}{name}.bias", GGMLType.F32, (length,), 0.0)

    def _feed_forward(self, layer: int) -> Iterator[Tensor]:
        """Predictor, gate, up and transposed down, a neuron a row."""
        shape, kind, block = self.shape, self.type, f"blk.{layer}."
        n, n_ff, rank = shape.n_embd, shape.n_ff, self.ranks[layer % len(self.ranks)]
        yield Tensor(f"{block}fc1.weight", self.predictor_type, (rank, n), lambda rows: self._fc1[rank][rows])
        yield Tensor(
            f"{block}fc2.weight",
            self.predictor_type,
            (n_ff, rank),
            lambda rows: self.rows.fc2_rows(self._firing(layer), rows, rank),
        )
        activated = f"{block}{shape.activated}.weight"
        yield Tensor(activated, kind, (n_ff, n), lambda rows: self.rows.gate_rows(self._firing(layer), rows))
        if shape.is_gated:
            yield self._up(layer)
        scale = self._added_scale * (self.active * n_ff * HIDDEN_VARIANCE[shape.architecture]) ** -0.5
        yield self._random(f"{block}ffn_down_t.weight", (n_ff, n), scale, silent_cols=True)
        yield from self._ffn_biases(block, "ffn_down_t")

    def _up(self, layer: int) -> Tensor:
        """Plain rows behind ReLU gates; behind dReLU's, positive for nearly every token."""
        n, n_ff, c = self.shape.n_embd, self.shape.n_ff, self.channels
        name = f"blk.{layer}.ffn_up.weight"
        if self.shape.architecture != "bamboo":
            return self._random(name, (n_ff, n), n**-0.5)
        offset = np.full(n_ff, UP_OFFSET / c.n_constant, np.float32)
        places = self.weights.places(self.rng(name), n_ff, n - c.n_constant)

        def make(rows: slice) -> Bytes:
            windows = self.weights.rows(places[rows], n - c.n_constant, self.type, n**-0.5)
            return np.concatenate([constant_groups(offset[rows], self.type), windows], axis=1)

        return Tensor(name, self.type, (n_ff, n), make)

    def _dense_feed_forward(self, layer: int) -> Iterator[Tensor]:
        """Plain rows; down as dense files hold it, an output channel a row."""
        shape, block = self.shape, f"blk.{layer}."
        n, n_ff = shape.n_embd, shape.n_ff
        for name in ("ffn_gate", "ffn_up") if shape.is_gated else ("ffn_up",):
            yield self._random(f"{block}{name}.weight", (n_ff, n), n**-0.5)
        scale = self._added_scale * n_ff**-0.5
        yield self._random(f"{block}ffn_down.weight", (n, n_ff), scale, silent_rows=True)
        yield from self._ffn_biases(block, "ffn_down")

    def _ffn_biases(self, block: str, down: str) -> Iterator[Tensor]:
        for name, length in bias_shapes(self.shape, down).items():
            if name.startswith("ffn"):
                yield self._constant(f"{block}{name}.bias", GGMLType.F32, (length,), 0.0)

    def _random(
        self, name: str, shape: tuple[int, int], scale: float, *, silent_rows: bool = False, silent_cols: bool = False
    ) -> Tensor:
        """Gaussian rows of deviation `scale`. silent: the constant channels, rows or columns, are zero."""
        n_constant = self.channels.n_constant
        skipped = n_constant if silent_cols else 0
        places = self.weights.places(self.rng(name), shape[0], shape[1] - skipped)

        def make(rows: slice) -> Bytes:
            made = self.weights.rows(places[rows], shape[1] - skipped, self.type, scale)
            if silent_rows:
                made[: max(0, n_constant - rows.start)] = 0
            if silent_cols:
                made = np.concatenate([constant_groups(np.zeros(len(made), np.float32), self.type), made], axis=1)
            return made

        return Tensor(name, self.type, shape, make)

    def _norm(self, name: str) -> Iterator[Tensor]:
        shape = (self.shape.n_embd,)
        yield self._constant(f"{name}.weight", GGMLType.F32, shape, 1.0)
        if self.shape.architecture in LAYER_NORM:
            yield self._constant(f"{name}.bias", GGMLType.F32, shape, 0.0)

    def _constant(self, name: str, kind: GGMLType, shape: tuple[int, ...], value: float) -> Tensor:
        def make(rows: slice) -> Bytes:
            n_rows = rows.stop - rows.start
            groups = constant_groups(np.full(1, value, np.float32), kind).reshape(-1)
            n_weights, n_bytes = group_size(kind), len(groups)
            whole = np.tile(groups, (n_rows, -(-shape[-1] // n_weights)))
            return whole[:, : shape[-1] * n_bytes // n_weights]

        return Tensor(name, kind, shape, make)


def head_type(shape: Shape, ggml_type: GGMLType) -> GGMLType:
    """The type quantisers give the head: Q6_K, or Q8_0 where rows are no multiple of 256 or all matrices are Q8_0."""
    if BLOCK_LAYOUTS[ggml_type].n_weights == 1 or ggml_type is GGMLType.Q8_0:
        return ggml_type
    return GGMLType.Q8_0 if shape.n_embd % BLOCK_LAYOUTS[GGMLType.Q6_K].n_weights else GGMLType.Q6_K


def write_model(path: Path, maker: Maker, name: str, *, sparse: bool) -> None:
    """Writes the PWRI file, or the dense twin."""
    shape = maker.shape
    activation = "relu" if shape.architecture == "falcon" else None
    if not sparse and shape.architecture == "bamboo":
        shape = replace(shape, architecture="llama")
    with GGUFWriter(path, "PWRI" if sparse else "GGUF") as writer:
        write_metadata(writer, shape, maker.type, name, activation)
        for tensor in maker.tensors(sparse):
            writer.add_tensor(tensor.name, tensor.type, tensor.shape)
        for tensor in maker.tensors(sparse):
            writer.write_tensor(tensor.name, tensor.chunks())


def shape_from(options: argparse.Namespace) -> Shape:
    """The named shape with what the options change. Raises OptionError for dimensions that do not fit."""
    named = SHAPES[options.shape]
    changes = {"architecture": options.architecture, "n_layer": options.layers}
    changes |= {name: getattr(options, name) for name in ("n_embd", "n_ff", "n_head", "n_head_kv", "n_vocab")}
    shape = replace(named, **{name: value for name, value in changes.items() if value is not None})
    counts = (shape.n_layer, shape.n_embd, shape.n_ff, shape.n_head, shape.n_head_kv)
    if min(counts) < 1 or shape.n_embd % shape.n_head or shape.n_head % shape.n_head_kv or shape.head_dim % 2:
        raise OptionError("heads must divide the embedding length into even parts, key heads must divide heads")
    if not FIRST_ORDINARY + 2 <= shape.n_vocab <= 450_000:
        raise OptionError(f"the vocabulary must have {FIRST_ORDINARY + 2} to 450000 tokens, not {shape.n_vocab}")
    return shape


def make(options: argparse.Namespace) -> dict[str, object]:
    """Writes the files that the options ask for; returns what was made."""
    started = perf_counter()
    shape = shape_from(options)
    active = shape.active if options.active is None else options.active
    if not 0 < active <= 1:
        raise OptionError(f"--active is a share above 0 and up to 1, not {active}")
    ranks = options.rank or (shape.rank,)
    ggml_type = GGMLType[options.type.upper()]
    maker = Maker(shape, ggml_type, active, ranks, options.seed)
    name = f"synthetic {options.shape} {options.type}, {shape.n_layer} layers, {active:.0%} active, seed {options.seed}"
    write_model(options.output, maker, name, sparse=True)
    files = [options.output]
    if options.dense_twin is not None:
        write_model(options.dense_twin, maker, f"{name}, dense twin", sparse=False)
        files.append(options.dense_twin)
    return {
        "files": {str(file): file.stat().st_size for file in files},
        "architecture": shape.architecture,
        "layers": shape.n_layer,
        "type": ggml_type.name,
        "head_type": maker.head_type.name,
        "active": active,
        "ranks": ranks,
        "seed": options.seed,
        "elapsed_s": round(perf_counter() - started, 2),
    }


def ranks_from(text: str) -> tuple[int, ...]:
    """Predictor ranks, one for all layers or several that take turns."""
    return tuple(int(part) for part in text.split(","))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("output", type=Path, help="the PWRI file to write; an existing one is replaced")
    result.add_argument("--dense-twin", type=Path, metavar="FILE", help="also write a dense GGUF of the same shape")
    result.add_argument("--shape", choices=SHAPES, default="relullama-7b", help="(default: %(default)s)")
    result.add_argument("--type", choices=[kind.name.lower() for kind in WEIGHT_TYPES], default="q4_0")
    result.add_argument("--active", type=float, help="share of neurons that fire (default: the shape's)")
    result.add_argument("--architecture", choices=["llama", "bamboo", "opt", "falcon", "arcee"])
    result.add_argument("--layers", type=int, help="number of layers (default: the shape's)")
    for name in ("n-embd", "n-ff", "n-head", "n-head-kv", "n-vocab"):
        result.add_argument(f"--{name}", type=int, metavar="N", help="instead of the shape's")
    result.add_argument("--rank", type=ranks_from, help="of the predictors; several, with commas, take turns by layer")
    result.add_argument("--seed", type=int, default=1)
    return result


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; the last line printed is one JSON object."""
    try:
        print(json.dumps(make(parser().parse_args(argv))))
    except PowerInferError as error:
        print(f"make_synthetic_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
