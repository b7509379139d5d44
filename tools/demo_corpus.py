"""Books as chapters, cleaned and dealt to four sets; no tokens here.

Invariant: a chapter lies in one set alone, by a rule that knows its number in the book and nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from powerinfer_py.errors import PowerInferError

SETS = ("train", "calibration", "profile", "held_out")
# Chapter `i` of a book goes by i modulo PERIOD; 3 of 16 are kept from training, spread over the whole plot.
PERIOD = 16
KEPT_FROM_TRAINING = {3: "calibration", 7: "profile", 11: "held_out"}
# The first chapters of this book are the package's own calibration text (powerinfer_py/profiler/calibration).
SHIPPED_CALIBRATION = {"persuasion": 6}
HEADING = re.compile(r"(?:chapter|volume|book|part)\s+(?:[ivxlcdm]+|\d+)\.?", re.IGNORECASE)
PARAGRAPH_END = "\n\n"


class CorpusError(PowerInferError):
    """A text that cannot be used: not there, not UTF-8, without words."""


@dataclass(frozen=True)
class Chapter:
    """One chapter: the file's stem, its number in the file from 0, and its paragraphs, heading first."""

    document: str
    number: int
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """The chapter as the model sees it."""
        return PARAGRAPH_END.join(self.paragraphs) + "\n"

    @property
    def set_name(self) -> str:
        """Which of SETS it belongs to."""
        if self.number < SHIPPED_CALIBRATION.get(self.document, 0):
            return "calibration"
        return KEPT_FROM_TRAINING.get(self.number % PERIOD, "train")


def clean_paragraphs(text: str) -> list[str]:
    """Paragraphs of a hard-wrapped text, one line each; emphasis marks and repeated spaces go, headings stay."""
    text = text.replace("\r\n", "\n").replace("\ufeff", "").replace("_", "")
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in paragraphs if paragraph]


def split_chapters(document: str, text: str) -> list[Chapter]:
    """The chapters of one book. What stands before the first heading (title, author) is left out.

    A text without headings is one chapter.
    """
    chapters: list[list[str]] = []
    preface: list[str] = []
    for paragraph in clean_paragraphs(text):
        if HEADING.fullmatch(paragraph):
            is_first_after_volume = chapters and len(chapters[-1]) == 1
            if is_first_after_volume:
                chapters[-1][0] = paragraph
            else:
                chapters.append([paragraph])
        else:
            (chapters[-1] if chapters else preface).append(paragraph)
    if not chapters and preface:
        chapters = [preface]
    return [Chapter(document, number, tuple(paragraphs)) for number, paragraphs in enumerate(chapters)]


@dataclass(frozen=True)
class Corpus:
    """All chapters in order, and the SHA-256 of each file they came from."""

    chapters: tuple[Chapter, ...]
    file_hashes: dict[str, str]

    def of(self, set_name: str) -> list[Chapter]:
        """The chapters of one set, in order."""
        return [chapter for chapter in self.chapters if chapter.set_name == set_name]

    def text(self, set_name: str) -> str:
        """The text of one set, chapters one after another."""
        return "\n".join(chapter.text for chapter in self.of(set_name))


def read_corpus(paths: Sequence[Path]) -> Corpus:
    """Reads books, one UTF-8 file each. Raises CorpusError for a file that is none, or when a set stays empty."""
    chapters: list[Chapter] = []
    hashes: dict[str, str] = {}
    for path in paths:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8")
        except OSError as error:
            raise CorpusError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path}: not UTF-8 at byte {error.start}") from error
        if path.stem in hashes:
            raise CorpusError(f"{path}: a second text called {path.stem!r}; each needs a name of its own")
        own = split_chapters(path.stem, text)
        if not own:
            raise CorpusError(f"{path}: no words in it")
        hashes[path.stem] = hashlib.sha256(data).hexdigest()
        chapters.extend(own)
    corpus = Corpus(tuple(chapters), hashes)
    for name in SETS:
        if not corpus.of(name):
            raise CorpusError(f"no chapter for the {name} set: give a book of at least {max(KEPT_FROM_TRAINING) + 1}")
    return corpus
