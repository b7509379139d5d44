"""Finding the spellings of special tokens in text: leftmost first, of several at one place the longest.

Not a tokenizer. Time is proportional to the text's length times the number of distinct spelling lengths, whatever a
file declares special; a regular expression of all spellings would try each of them at every place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping


class SpellingMatcher:
    """Cuts text at the spellings of `tokens` (spelling -> id)."""

    def __init__(self, tokens: Mapping[str, int]) -> None:
        self._ids = dict(tokens)
        lengths: dict[str, set[int]] = {}
        for text in tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, self._lengths)) + "]") if tokens else None

    def split(self, text: str) -> list[str | int]:
        """Non-empty stretches of plain text (str) and the ids of the special tokens between them, in order."""
        parts: list[str | int] = []
        done = start = 0
        while self._first is not None and (found := self._first.search(text, start)) is not None:
            start = found.start()
            length = next((n for n in self._lengths[text[start]] if text[start : start + n] in self._ids), 0)
            if not length:
                start += 1
                continue
            if start > done:
                parts.append(text[done:start])
            parts.append(self._ids[text[start : start + length]])
            done = start = start + length
        if done < len(text):
            parts.append(text[done:])
        return parts

    def occurs_in(self, text: str) -> bool:
        """Whether `text` spells a special token."""
        return any(isinstance(part, int) for part in self.split(text))
