"""How byte-level BPE cuts text into words before merging, by the name in `tokenizer.ggml.pre`.

A rule is a list of regular expressions applied one after the other: each cuts what the ones before left, and the
stretches between its matches stay pieces of their own. Names are those that converters write into files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from powerinfer_py.errors import UnsupportedError, printable

CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
CONTRACTIONS_ANY_CASE = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
GPT2_WORDS = CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS_WITH_LEADING_MARK = (
    CONTRACTIONS_ANY_CASE + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_WORDS = WORDS_WITH_LEADING_MARK.replace("DIGITS", "{1,3}")
QWEN2_WORDS = WORDS_WITH_LEADING_MARK.replace("DIGITS", "")
TEKKEN_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREE_DIGITS = "[0-9][0-9][0-9]"
ONE_DIGIT = r"\p{N}"


@dataclass(frozen=True)
class PreTokenizer:
    """A rule for cutting text into words.

    ignore_merges: a word that is a token as it stands becomes that token, whether or not merges lead there.
    add_bos: whether text starts with the beginning-of-text token where the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


GPT2 = PreTokenizer((GPT2_WORDS,))
DEFAULT = PreTokenizer((r"[\p{P}$+<=>^~|]+", GPT2_WORDS, r"\p{N}+", THREE_DIGITS))
FALCON = PreTokenizer((r"[\p{P}$+<=>^~|`]+", GPT2_WORDS, THREE_DIGITS))
SMOLLM = PreTokenizer((ONE_DIGIT, GPT2_WORDS))
LLAMA3 = PreTokenizer((LLAMA3_WORDS,), ignore_merges=True, add_bos=True)
LLAMA3_PLAIN = PreTokenizer((LLAMA3_WORDS,))
QWEN2 = PreTokenizer((QWEN2_WORDS,))
TEKKEN = PreTokenizer((TEKKEN_WORDS,), ignore_merges=True, add_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": DEFAULT,
    **dict.fromkeys(("gpt-2", "gpt2", "opt", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"), GPT2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), LLAMA3_PLAIN),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), SMOLLM),
    "falcon": FALCON,
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"), QWEN2),
    "tekken": TEKKEN,
}

_MIXED_MERGE = re.compile(r"(?=.*[A-Za-z0-9Ġ])(?=.*[!-/:-@\[-_{-~])")


def choose_pre_tokenizer(name: object, merges: Sequence[str]) -> PreTokenizer:
    """The rule named `name`; for None, the one that the merges fit. Raises UnsupportedError for an unknown name.

    Files older than the key, PowerInfer's among them, hold vocabularies of both GPT-2's rule and `default` (Falcon's).
    `default` cuts between punctuation and anything else, so a merge across that border cannot come from it: one such
    merge proves GPT-2's rule. Without one, `default` is what llama.cpp takes, and what Falcon's own tokenizer does.
    """
    if name is None:
        return GPT2 if any(map(_MIXED_MERGE.match, merges)) else DEFAULT
    if isinstance(name, str) and name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    known = ", ".join(sorted(PRE_TOKENIZERS))
    raise UnsupportedError(f"pre-tokenizer {printable(repr(name), 60)} in tokenizer.ggml.pre; supported are {known}")
