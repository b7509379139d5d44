"""The demo model's own SentencePiece BPE, and texts as token streams; no model here.

Invariant: a stream says exactly what `LLM.tokenize` would say of the chapter, so that training and use agree.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from demo_corpus import PARAGRAPH_END, Chapter, CorpusError

UNKNOWN, BOS, EOS = 0, 1, 2
N_CONTROL_AND_BYTES = 3 + 256


def train_tokenizer(chapters: Sequence[Chapter], n_vocab: int, path: Path) -> None:
    """Writes a SentencePiece model of exactly `n_vocab` pieces, bytes as the fallback, llama's special tokens."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(paragraph for chapter in chapters for paragraph in chapter.paragraphs),
        model_writer=model,
        model_type="bpe",
        vocab_size=n_vocab,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        max_sentence_length=1 << 16,
        unk_id=UNKNOWN,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


def load_tokenizer(path: Path) -> Any:
    """A SentencePieceProcessor. Raises CorpusError where the file is missing or none."""
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise CorpusError(f"{path}: no tokenizer: {error}") from error


def write_tokenizer_config(folder: Path, n_ctx: int) -> None:
    """The files beside `tokenizer.model` that tell other programs about the special tokens."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = special | {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")


@dataclass(frozen=True)
class TokenStream:
    """Chapters end to end, each between BOS and EOS.

    tokens: (n_tokens,) int64. Opening k is how the text reads when it starts at paragraph k: `openings[k]`, after
    which it goes on at `resume[k]`; a piece at a text's start has a space before it that it lacks after a newline.
    """

    tokens: np.ndarray
    openings: tuple[np.ndarray, ...]
    resume: np.ndarray
    n_bytes: int


def encode_chapters(tokenizer: Any, chapters: Sequence[Chapter]) -> TokenStream:
    """Tokens of the chapters, and of their paragraphs taken as openings."""
    parts: list[int] = []
    openings: list[np.ndarray] = []
    resume: list[int] = []
    for chapter in chapters:
        start = len(parts)
        parts.append(BOS)
        openings.extend(np.array([BOS, *tokenizer.encode(text)], np.int64) for text in chapter.paragraphs)
        parts.extend(tokenizer.encode(chapter.text))
        parts.append(EOS)
        resume.extend(_paragraph_ends(tokenizer, parts[start:], start, len(chapter.paragraphs)))
    n_bytes = sum(len(chapter.text.encode()) for chapter in chapters)
    return TokenStream(np.array(parts, np.int64), tuple(openings), np.array(resume, np.int64), n_bytes)


def _paragraph_ends(tokenizer: Any, tokens: Sequence[int], start: int, n_paragraphs: int) -> list[int]:
    newline = tokenizer.piece_to_id("<0x0A>")
    width = len(PARAGRAPH_END)
    ends = [i for i in range(len(tokens) - 1) if list(tokens[i : i + width]) == [newline] * width]
    assert len(ends) == n_paragraphs - 1
    return [start + end for end in ends] + [start + len(tokens) - 2]
