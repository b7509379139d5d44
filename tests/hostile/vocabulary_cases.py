"""Vocabularies in a file's metadata, and chat templates: code from a stranger that must not cost more than a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers_vocabulary import byte_level_metadata, sentencepiece_metadata
from hostile.case import HostileCase, with_bytes

from powerinfer_py.gguf import GGUFWriter, ValueType

NUMBERS = {"int32": ValueType.INT32, "float32": ValueType.FLOAT32, "uint8": ValueType.UINT8}


def write_vocabulary(path: Path, metadata: Mapping[str, Any]) -> Path:
    """A GGUF file of these keys and no tensors."""
    with GGUFWriter(path, "GGUF") as writer:
        for key, value in metadata.items():
            if isinstance(value, str):
                writer.add(key, value, ValueType.STRING)
            elif isinstance(value, bool):
                writer.add(key, value, ValueType.BOOL)
            elif isinstance(value, float):
                writer.add(key, value, ValueType.FLOAT32)
            elif isinstance(value, int):
                writer.add(key, value, ValueType.INT64)
            elif isinstance(value, list):
                writer.add(key, value, ValueType.ARRAY, ValueType.STRING)
            else:
                writer.add(key, value.tolist(), ValueType.ARRAY, NUMBERS[value.dtype.name])
    return path


def vocabulary(
    kind: str, name: str, error: str | None = "TokenizerError", match: str = "", **changes: Any
) -> HostileCase:
    make: Callable[..., dict[str, Any]] = sentencepiece_metadata if kind == "llama" else byte_level_metadata

    def build(folder: Path) -> Path:
        return write_vocabulary(folder / "vocabulary.gguf", make(**changes))

    return HostileCase("Tokenizer", f"{kind}: {name}", "tokenizer", build, error, match)


VOCABULARIES = [
    *(
        vocabulary(kind, name, match=match, **changes)
        for kind in ("llama", "gpt2")
        for name, match, changes in (
            ("no tokens", "tokens is missing", {"tokens": None}),
            ("empty tokens", "tokens is missing", {"tokens": []}),
            ("tokens that are a string", "array of strings", {"tokens": "abc"}),
            ("tokens that are numbers", "array of strings", {"tokens": np.zeros(5, np.int32)}),
            ("types of unequal length", "token_type has 3", {"token_type": np.zeros(3, np.int32)}),
            ("types that are a number", "token_type must be", {"token_type": 3}),
            ("BOS beyond the vocabulary", "bos_token_id is 100000", {"bos_token_id": 100_000}),
            ("negative EOS", "eos_token_id is -1", {"eos_token_id": -1}),
            ("unknown token that is a float", "unknown_token_id", {"unknown_token_id": 1.5}),
            ("BOS that is an escape sequence", "bos_token_id must be", {"bos_token_id": "\x1b[31m" * 100}),
            ("add_bos that is a number", "add_bos_token must be", {"add_bos_token": 1}),
            ("add_bos without BOS", "names no bos", {"add_bos_token": True, "bos_token_id": None}),
            ("no kind", "model is missing", {"model": None}),
        )
    ),
    vocabulary("llama", "type 7", match="type 7", token_type=np.full(271, 7, np.int32)),
    vocabulary("llama", "no scores", match="scores is missing", scores=None),
    vocabulary("llama", "scores of NaN", match="score nan", scores=np.full(271, np.nan, np.float32)),
    vocabulary("llama", "infinite scores", match="score inf", scores=np.full(271, np.inf, np.float32)),
    vocabulary("llama", "scores of unequal length", match="scores has 5", scores=np.zeros(5, np.float32)),
    vocabulary("llama", "table", "UnsupportedError", "charsmap", precompiled_charsmap=np.ones(8, np.uint8)),
    vocabulary("gpt2", "no merges", match="merges is missing", merges=None),
    vocabulary("gpt2", "a merge of an unknown token", match="unknown token", merges=["a b", "a nosuch"]),
    vocabulary("gpt2", "an empty merge", match="unknown token", merges=[""]),
    vocabulary("gpt2", "merges that are numbers", match="array of strings", merges=np.ones(4, np.float32)),
    vocabulary("gpt2", "unknown pre-tokenizer", "UnsupportedError", pre="no-such-thing"),
    vocabulary("llama", "as it should be", None),
    vocabulary("gpt2", "as it should be", None),
]

TEMPLATE_SOURCES = {
    "unfinished": "{% for a in",
    "unknown filter": "{{ 'a' | nosuch }}",
    "undefined": "{{ x.y.z }}",
    "a string multiplied": "{{ 'a' * 10**9 }}",
    "a power of powers": "{{ 9 ** (9 ** 9) }}",
    "a range of 10^9": "{% for i in range(10**9) %}x{% endfor %}",
    "silent nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "padding": "{{ 'a'.center(10**10) }}",
    "percent format": "{{ '%999999999s' % 'x' }}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "joined": "{{ ('a,' * 100000).split(',') | join('b' * 100000) }}",
    "parentheses nested 5000 deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "Python's classes": "{{ ''.__class__.__mro__ }}",
    "Python's globals": "{{ cycler.__init__.__globals__ }}",
    "a message appended": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
    "processor time": "{{ range(100000) | map('wordcount') | sum(start=9 ** 99999) }}{{ 7 ** 9999999 }}",
    "100 MB of output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "two million characters": "{{ 1 }}" * 300_000,
}
TEMPLATES = [
    HostileCase("Chat template", name, "template", with_bytes(json.dumps(source).encode()), "ChatTemplateError")
    for name, source in TEMPLATE_SOURCES.items()
]
PLAIN_TEMPLATE = json.dumps("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}").encode()
TEMPLATES.append(HostileCase("Chat template", "as it should be", "template", with_bytes(PLAIN_TEMPLATE), None))
CASES = [*VOCABULARIES, *TEMPLATES]
