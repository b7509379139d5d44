"""What else a stranger's checkpoint holds: safetensors headers, config.json, tokenizer files."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers_checkpoints import FIXTURES
from hostile.case import HostileCase, with_bytes


def safetensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]} | changes}


def header(name: str, content: object, error: str | None = "FileFormatError", **more: Any) -> HostileCase:
    build = with_bytes(lambda: safetensors(content, **more), "model.safetensors")
    return HostileCase("P safetensors", name, "safetensors", build, error)


SAFETENSORS = [
    HostileCase("P safetensors", "empty file", "safetensors", with_bytes(b"")),
    HostileCase("P safetensors", "7 bytes", "safetensors", with_bytes(b"\0" * 7)),
    *(
        header(f"header length {label}", tensor(), length=n)
        for label, n in (("2^64-1", 2**64 - 1), ("2^63", 2**63), ("10^9", 10**9), ("past the end", 500), ("0", 0))
    ),
    header("data cut", tensor(), data=bytes(15)),
    header("offsets past the end", tensor(data_offsets=[0, 2**70])),
    header("offsets in the wrong order", tensor(data_offsets=[8, 0])),
    header("negative offset", tensor(data_offsets=[-2, 14])),
    header("offset that is a float", tensor(data_offsets=[0.0, 16])),
    header("one offset", tensor(data_offsets=[0])),
    header("shape that needs more bytes", tensor(shape=[2, 5])),
    header("negative dims", tensor(shape=[-2, -4])),
    header("product beyond 2^64", tensor(shape=[2**40, 2**40])),
    header("a zero beside a huge dim", tensor(shape=[0, 2**50])),
    header("nine dims", tensor(shape=[1] * 9)),
    header("a dim that is a boolean", tensor(shape=[True, 8])),
    header("shape that is a string", tensor(shape="24")),
    header("unknown type", tensor(dtype="F12")),
    header("tensor that is a number", {"x": 3}),
    header("list for a header", []),
    header("half a header", b"{"),
    header("nested 100000 deep", b"[" * 100_000),
    header("not UTF-8", b"\xff"),
    header("a hundred digits", b'{"x": ' + b"9" * 100 + b"}"),
    header("a million digits", b'{"x": ' + b"9" * 1_000_000 + b"}"),
    header("plain", tensor(), None),
    header("zero elements", tensor(shape=[0, 4], data_offsets=[0, 0]), None),
]


def checkpoint(
    clause: str, name: str, change: Callable[[Path], None], error: str | None, source: str = "opt", match: str = ""
) -> HostileCase:
    """A fixture's folder, changed; the weights are the fixture's own file under another name."""

    def build(folder: Path) -> Path:
        target = folder / "model"
        target.mkdir()
        for path in (FIXTURES / source).iterdir():
            if path.suffix == ".safetensors":
                os.link(path, target / path.name)
            else:
                shutil.copy(path, target)
        change(target)
        return target

    return HostileCase(clause, name, "checkpoint", build, error, match)


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(content | changes), encoding="utf-8")

    return change


def replaced(file: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(data) and None


def config(name: str, error: str | None = "FileFormatError", match: str = "", **changes: Any) -> HostileCase:
    change = edited("config.json", **changes)
    return checkpoint("config.json", name, change, error, "relu-llama", match)


CONFIGS = [
    checkpoint("config.json", "missing", lambda f: (f / "config.json").unlink(), "FileFormatError"),
    checkpoint("config.json", "empty", replaced("config.json", b" "), "FileFormatError"),
    checkpoint("config.json", "a list", replaced("config.json", b"[]"), "FileFormatError"),
    checkpoint("config.json", "nested 100000 deep", replaced("config.json", b"[" * 100_000), "FileFormatError"),
    checkpoint("config.json", "not UTF-8", replaced("config.json", b"\xff\xfe{"), "FileFormatError"),
    config("negative width", match="hidden_size is -4", hidden_size=-4),
    config("width that is a string", hidden_size="64"),
    config("width that is a float", hidden_size=64.0),
    config("width that is true", hidden_size=True),
    config("10^12 layers", num_hidden_layers=10**12),
    config("a hundred digits of layers", num_hidden_layers=10**99),
    config("no layer", num_hidden_layers=0),
    config("one layer more than there are weights", "ModelError", num_hidden_layers=13),
    config("2^27 tokens", vocab_size=1 << 27),
    config("heads that do not divide the width", num_attention_heads=3),
    config("key heads that do not divide the heads", num_key_value_heads=3),
    config("epsilon that is true", rms_norm_eps=True),
    config("epsilon of infinity", rms_norm_eps=float("inf")),
    config("epsilon of NaN", rms_norm_eps=float("nan")),
    config("RoPE base of NaN", rope_theta=float("nan")),
    config("no architecture", architectures=[]),
    config("architecture that is a number", architectures=[3]),
    config("unknown architecture", "UnsupportedError", architectures=["MixtralForCausalLM"]),
    config("unknown activation", "UnsupportedError", hidden_act="gelu"),
    config("FATReLU without its threshold", hidden_act="fatrelu"),
    config("negative FATReLU threshold", hidden_act="fatrelu", hidden_act_param=-1),
    config("RoPE scaling that is a string", rope_scaling="linear"),
    config("unknown RoPE scaling", "UnsupportedError", rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
    checkpoint("config.json", "as published", lambda _folder: None, None),
]


def tokenizer(name: str, change: Callable[[Path], None], error: str | None = "FileFormatError") -> HostileCase:
    return checkpoint("Tokenizer files", name, change, error)


def model(**fields: Any) -> Callable[[Path], None]:
    return edited("tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}, "merges": []} | fields)


def sentencepiece(name: str, data: bytes, error: str = "FileFormatError") -> HostileCase:
    change = replaced("tokenizer.model", data)
    return checkpoint("Tokenizer files", f"tokenizer.model: {name}", change, error, "bamboo")


TOKENIZERS = [
    tokenizer("tokenizer.json: another kind", model(type="WordPiece"), "UnsupportedError"),
    tokenizer("tokenizer.json: no vocabulary", model(vocab=None)),
    tokenizer("tokenizer.json: empty vocabulary", model(vocab={})),
    tokenizer("tokenizer.json: a hole among the ids", model(vocab={"a": 2})),
    tokenizer("tokenizer.json: an id twice", model(vocab={"a": 0, "b": 0})),
    tokenizer("tokenizer.json: id 2^70", model(vocab={"a": 2**70})),
    tokenizer("tokenizer.json: negative id", model(vocab={"a": -1})),
    tokenizer("tokenizer.json: id that is true", model(vocab={"a": True})),
    tokenizer("tokenizer.json: a merge of one piece", model(merges=["a"])),
    tokenizer("tokenizer.json: merges that are a number", model(merges=3)),
    tokenizer("tokenizer.json: a merge of numbers", model(merges=[[1, 2]])),
    tokenizer("tokenizer.json: added token without id", edited("tokenizer.json", added_tokens=[{"content": "x"}])),
    tokenizer("tokenizer.json: added tokens that are a number", edited("tokenizer.json", added_tokens=3)),
    tokenizer(
        "tokenizer.json: a pre-tokenizer of 100 kB",
        edited("tokenizer.json", pre_tokenizer="x" * 100_000),
        "UnsupportedError",
    ),
    tokenizer("tokenizer.json: nested deep", replaced("tokenizer.json", b'{"a":' * 50_000)),
    tokenizer("tokenizer.json: empty", replaced("tokenizer.json", b" ")),
    tokenizer("tokenizer_config.json: a list", replaced("tokenizer_config.json", b"[]")),
    sentencepiece("empty", b" "[:0]),
    sentencepiece("length past the end", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    sentencepiece("number of eleven bytes", b"\xff" * 11),
    sentencepiece("unknown wire type", b"\x0b"),
    sentencepiece("number where a message belongs", b"\x08\x01"),
    sentencepiece("a unigram model", b"\x0a\x03\x0a\x01a", "UnsupportedError"),
    sentencepiece("piece that is not UTF-8", b"\x0a\x03\x0a\x01\xff\x12\x02\x18\x02"),
]
CASES = [*SAFETENSORS, *CONFIGS, *TOKENIZERS]
