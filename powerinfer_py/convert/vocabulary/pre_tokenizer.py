"""Which named pre-tokenizer the rules in a tokenizer.json are.

A file of byte-level BPE names its pre-tokenizer, and an engine knows what the name means; tokenizer.json spells the
rules out. So a name is found by comparing rules, not by guessing from the model. Invariant: rules that are not in the
table are refused, by their regular expressions, unless the user names what they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from powerinfer_py.errors import UnsupportedError, printable

_ANY_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_MARK_AND_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _ANY_CASE + _MARK_AND_WORDS.replace("DIGITS", "{1,3}")
_QWEN2 = _ANY_CASE + _MARK_AND_WORDS.replace("DIGITS", "")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = ("bytes",)
_GPT2_WORDS_AND_BYTES = ("gpt2 words and bytes",)


def _split(pattern: str) -> tuple[str, ...]:
    return ("split", pattern)


# Steps of a pre-tokenizer, as `_steps` reads them -> name in files. With ignore_merges a word that is a token becomes
# that token whether or not merges lead there, which sets llama-bpe apart from the others of its rule.
_KNOWN: dict[tuple[tuple[tuple[str, ...], ...], bool], str] = {
    ((_GPT2_WORDS_AND_BYTES,), False): "gpt-2",
    ((("digits",), _GPT2_WORDS_AND_BYTES), False): "smollm",
    ((("punctuation",), _GPT2_WORDS_AND_BYTES, ("numbers",), _split("[0-9][0-9][0-9]")), False): "falcon",
    ((_split(_LLAMA3), _BYTES), True): "llama-bpe",
    ((_split(_LLAMA3), _BYTES), False): "dbrx",
    ((_split(_QWEN2), _BYTES), False): "qwen2",
    ((_split(_TEKKEN), _BYTES), True): "tekken",
}
RECOGNISED_PRE_TOKENIZERS: tuple[str, ...] = tuple(_KNOWN.values())
# The rule of `vocab.json` and `merges.txt` without a tokenizer.json: GPT-2's own.
GPT2 = "gpt-2"


def recognise(rules: Any, *, ignore_merges: bool, path: Path) -> str:
    """The name of the pre-tokenizer. rules: `pre_tokenizer` of tokenizer.json.

    Raises UnsupportedError naming the regular expressions where the rules have no name here.
    """
    steps = _steps(rules)
    name = None if steps is None else _KNOWN.get((steps, ignore_merges))
    if name is None:
        raise UnsupportedError(
            f"{printable(str(path))}: unknown pre-tokenizer {printable(_description(rules), 300)}; recognised are "
            f"{', '.join(RECOGNISED_PRE_TOKENIZERS)}: name the one that it equals with --pre"
        )
    return name


def _steps(rules: Any) -> tuple[tuple[str, ...], ...] | None:
    """The steps one after the other in a normal form, None where one of them is not known."""
    if not isinstance(rules, dict):
        return None
    members = rules.get("pretokenizers") if rules.get("type") == "Sequence" else [rules]
    if not isinstance(members, list):
        return None
    steps = [_step(member) for member in members if isinstance(member, dict)]
    if len(steps) != len(members) or None in steps:
        return None
    return tuple(step for step in steps if step is not None)


def _step(rule: dict[str, Any]) -> tuple[str, ...] | None:
    kind = rule.get("type")
    if kind == "ByteLevel" and rule.get("add_prefix_space") is False:
        return _GPT2_WORDS_AND_BYTES if rule.get("use_regex", True) is True else _BYTES
    if kind == "Digits":
        return ("digits",) if rule.get("individual_digits") is True else ("numbers",)
    if kind == "Punctuation" and rule.get("behavior") == "Contiguous":
        return ("punctuation",)
    if kind == "Split" and rule.get("invert") is False and rule.get("behavior") == "Isolated":
        pattern = rule.get("pattern")
        spelled = pattern.get("Regex") if isinstance(pattern, dict) else None
        return _split(spelled) if isinstance(spelled, str) else None
    if kind == "Split" and rule.get("invert") is True and rule.get("behavior") == "Removed":
        # tekken's rule as it is published keeps what matches instead of cutting around it, which is the same.
        pattern = rule.get("pattern")
        spelled = pattern.get("Regex") if isinstance(pattern, dict) else None
        return _split(spelled) if spelled == _TEKKEN else None
    return None


def _description(rules: Any) -> str:
    return json.dumps(rules, ensure_ascii=False)
