"""From the metadata of a model file to a tokenizer of the kind it names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from powerinfer_py.errors import TokenizerError, UnsupportedError, printable
from powerinfer_py.tokenizer.byte_level_bpe import ByteLevelBPETokenizer
from powerinfer_py.tokenizer.pretokenizers import choose_pre_tokenizer
from powerinfer_py.tokenizer.sentencepiece_bpe import SentencePieceTokenizer
from powerinfer_py.tokenizer.tokenizer import Tokenizer
from powerinfer_py.tokenizer.vocabulary import PREFIX, read_vocabulary

KINDS = ("llama", "gpt2")


def load_tokenizer(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer that the `tokenizer.ggml.*` keys of a GGUF file describe.

    metadata: key -> value; arrays of strings as sequences of str, arrays of numbers as numpy arrays. Raises
    TokenizerError for a vocabulary that cannot be used, UnsupportedError for a kind or pre-tokenizer not known here.
    """
    kind = metadata.get(PREFIX + "model")
    if kind is None:
        raise TokenizerError(f"the file has no tokenizer: {PREFIX}model is missing")
    # Compared as text: an array compares with each of them element by element.
    if not isinstance(kind, str) or kind not in KINDS:
        raise UnsupportedError(f"tokenizer of kind {printable(repr(kind), 60)}; supported are {', '.join(KINDS)}")
    vocabulary = read_vocabulary(metadata)
    if kind == "gpt2":
        rule = choose_pre_tokenizer(metadata.get(PREFIX + "pre"), vocabulary.merges or ())
        return ByteLevelBPETokenizer(vocabulary, rule)
    charsmap = metadata.get(PREFIX + "precompiled_charsmap")
    if charsmap is not None and np.size(charsmap):  # type: ignore[arg-type]
        raise UnsupportedError(f"{PREFIX}precompiled_charsmap: text normalisation by a table is not supported")
    return SentencePieceTokenizer(vocabulary)
