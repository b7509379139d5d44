"""Well-formed files whose keys, vocabulary or tensors make no model, or one that must not be run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from helpers_models import FIXTURES, edited_copy
from hostile.case import HostileCase

from powerinfer_py.gguf import GGUFWriter, ValueType, open_gguf

SOURCE = FIXTURES / "bamboo.q4.powerinfer.gguf"
U32, I32, F32, TEXT, U64 = (
    ValueType.UINT32,
    ValueType.INT32,
    ValueType.FLOAT32,
    ValueType.STRING,
    ValueType.UINT64,
)
CLAUSE = "G Data and meaning"
NAN, INF = math.nan, math.inf


def keyed(key: str, value: Any, kind: ValueType, error: str, match: str = "", name: str = "") -> HostileCase:
    """The fixture with one key set."""

    def build(folder: Path) -> Path:
        return edited_copy(SOURCE, folder / "model.gguf", values={key: (value, kind)})

    return HostileCase(CLAUSE, name or f"{key} = {value}", "model", build, error, match)


def dropped(tensor: str, error: str, match: str) -> HostileCase:
    def build(folder: Path) -> Path:
        return edited_copy(SOURCE, folder / "model.gguf", drop=lambda name: name == tensor)

    return HostileCase(CLAUSE, f"missing tensor {tensor}", "model", build, error, match)


def array_edited(key: str, edit: Callable[[Any], Any], name: str, error: str, match: str = "") -> HostileCase:
    """The fixture with an array changed; it may become one of another length or type."""

    def build(folder: Path) -> Path:
        target = folder / "model.gguf"
        with open_gguf(SOURCE) as file, GGUFWriter(target, file.magic) as writer:
            for own, entry in file.entries.items():
                if own != key:
                    writer.add_entry(entry)
            values, element = edit(file.entries[key].value)
            writer.add(key, values, ValueType.ARRAY, element)
            for tensor, info in file.tensors.items():
                writer.add_tensor(tensor, info.ggml_type, info.shape)
            for tensor in file.tensors:
                writer.write_tensor(tensor, file.tensor_data(tensor))
        return target

    return HostileCase(CLAUSE, name, "model", build, error, match)


def filled(tensor: str, byte: int, name: str) -> HostileCase:
    """Every byte of a tensor set: 0xFF makes NaN of floats and of the float16 scales of blocks."""

    def build(folder: Path) -> Path:
        def edit(own: str, data: np.ndarray) -> np.ndarray:
            return np.full_like(data, byte) if own == tensor else data

        return edited_copy(SOURCE, folder / "model.gguf", edit)

    return HostileCase("H NaN in weights", name, "sampled", build, "NumericalError", "NaN")


HYPERPARAMETERS = [
    keyed("general.architecture", "gpt-j", TEXT, "UnsupportedError", "gpt-j"),
    keyed("general.architecture", "\x1b[31m", TEXT, "UnsupportedError", name="architecture with escape sequence"),
    keyed("general.architecture", 7, U32, "FileFormatError", "expected STRING"),
    keyed("bamboo.block_count", 0, U32, "ModelError", "block_count is 0"),
    keyed("bamboo.block_count", 1, U32, "UnsupportedError", r"blk\.1\."),
    keyed("bamboo.block_count", 3, U32, "ModelError", r"blk\.2\."),
    keyed("bamboo.block_count", 2**32 - 1, U32, "ModelError", "block_count"),
    keyed("bamboo.block_count", -1, I32, "ModelError", "block_count is -1"),
    keyed("bamboo.block_count", 2**63, U64, "ModelError", "block_count"),
    keyed("bamboo.attention.head_count", 0, U32, "ModelError", "head_count is 0"),
    keyed("bamboo.attention.head_count", 3, U32, "ModelError"),
    keyed("bamboo.attention.head_count", 2**31, U32, "ModelError", "head_count"),
    keyed("bamboo.attention.head_count_kv", 0, U32, "ModelError", "head_count_kv is 0"),
    keyed("bamboo.attention.head_count_kv", 3, U32, "ModelError", "cannot share"),
    keyed("bamboo.attention.head_count_kv", 2**31, U32, "ModelError", "head_count_kv"),
    keyed("bamboo.embedding_length", 63, U32, "ModelError", "63 is no multiple"),
    keyed("bamboo.embedding_length", 128, U32, "ModelError", "expected"),
    keyed("bamboo.embedding_length", 2**31, U32, "ModelError", "embedding_length"),
    keyed("bamboo.attention.key_length", 0, U32, "ModelError", "key_length is 0"),
    keyed("bamboo.attention.key_length", 48, U32, "ModelError"),
    keyed("bamboo.attention.value_length", 2**30, U32, "ModelError", "value_length"),
    keyed("bamboo.feed_forward_length", 0, U32, "ModelError", "feed_forward_length is 0"),
    keyed("bamboo.feed_forward_length", 512, U32, "ModelError", "expected"),
    keyed("bamboo.context_length", 0, U32, "ModelError", "context_length is 0"),
    keyed("bamboo.context_length", 2**31, U32, "ModelError", "context_length"),
    keyed("bamboo.rope.dimension_count", 31, U32, "ModelError", "even number"),
    keyed("bamboo.rope.dimension_count", 64, U32, "ModelError", "even number"),
    *(keyed("bamboo.rope.freq_base", value, F32, "ModelError", "freq_base") for value in (NAN, INF, 0.0, -1e4)),
    *(
        keyed("bamboo.attention.layer_norm_rms_epsilon", value, F32, "ModelError", "rms_epsilon")
        for value in (NAN, INF, -1.0, 0.0)
    ),
    keyed("bamboo.attention.layer_norm_rms_epsilon", 1, U32, "FileFormatError", "expected a float"),
    *(keyed("powerinfer.sparse_threshold", value, F32, "ModelError", "sparse_threshold") for value in (NAN, INF)),
    keyed("powerinfer.activation", "gelu", TEXT, "UnsupportedError", "gelu"),
    keyed("powerinfer.activation", "fatrelu", TEXT, "ModelError", "fatrelu_threshold"),
    keyed("bamboo.rope.scaling.type", "longrope", TEXT, "UnsupportedError", "longrope"),
    keyed("bamboo.rope.scaling.factor", NAN, F32, "ModelError", "factor"),
]
TENSORS = [
    dropped("blk.1.ffn_up.weight", "ModelError", r"blk\.1\.ffn_up\.weight is missing"),
    dropped("blk.1.fc2.weight", "ModelError", r"blk\.1\.fc2\.weight is missing"),
    dropped("token_embd.weight", "ModelError", "token_embd"),
    dropped("output_norm.weight", "ModelError", "output_norm"),
    dropped("blk.0.fc1.weight", "UnsupportedError", r"blk\.0\.fc2"),
]
T = "tokenizer.ggml."


def numbers_for_kind(what: str, numbers: list[int]) -> HostileCase:
    """The vocabulary's kind as an array, which numpy compares element by element."""
    name = f"a kind of vocabulary that is an array of {what}"
    return array_edited(T + "model", lambda _: (numbers, U32), name, "UnsupportedError", "tokenizer of kind")


VOCABULARY = [
    array_edited(T + "scores", lambda v: (v[:5].tolist(), F32), "scores of unequal length", "TokenizerError", "scores"),
    array_edited(T + "token_type", lambda v: (v[:-1].tolist(), I32), "types of unequal length", "TokenizerError"),
    array_edited(T + "scores", lambda v: (["0"] * len(v), TEXT), "scores that are strings", "TokenizerError", "scores"),
    array_edited(T + "tokens", lambda v: (list(range(len(v))), U32), "tokens that are numbers", "FileFormatError"),
    array_edited(T + "tokens", lambda v: ([*v, "more"], TEXT), "more tokens than rows", "ModelError", "rows"),
    array_edited(T + "token_type", lambda v: ([9] * len(v), I32), "an unknown token type", "TokenizerError", "type 9"),
    array_edited(T + "scores", lambda v: ([NAN] * len(v), F32), "scores of NaN", "TokenizerError", "nan"),
    keyed(T + "bos_token_id", 512, U32, "TokenizerError", "bos_token_id"),
    keyed(T + "eos_token_id", 2**32 - 1, U32, "TokenizerError", "eos_token_id"),
    keyed(T + "model", "wordpiece", TEXT, "UnsupportedError", "wordpiece"),
    keyed(T + "model", 3, U32, "UnsupportedError"),
    numbers_for_kind("no numbers", []),
    numbers_for_kind("numbers", [1, 2]),
    keyed("tokenizer.chat_template", 3, U32, "ChatTemplateError"),
]
WEIGHTS = [
    filled("output_norm.weight", 0xFF, "NaN in a norm"),
    filled("output.weight", 0xFF, "NaN in the scales of the head"),
    filled("blk.1.ffn_down_t.weight", 0xFF, "NaN in the scales of a down projection"),
    filled("blk.0.attn_q.weight", 0xFF, "NaN in the scales of the queries"),
]
ACCEPTED = [
    HostileCase("G Accept", "the fixture as it is", "model", lambda _folder: SOURCE, error=None),
    keyed("bamboo.unknown_key", 7, U32, None, name="a key that nobody knows"),  # type: ignore[arg-type]
]
CASES = [*HYPERPARAMETERS, *TENSORS, *VOCABULARY, *WEIGHTS, *ACCEPTED]
