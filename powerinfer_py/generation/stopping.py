"""Stop strings in text that arrives piece by piece. Not a tokenizer: it sees characters, never tokens.

Invariant: what has been emitted is always a prefix of the text before the stop, however the text is cut into pieces.
The stop that is *completed* first wins (of several ending at the same character, the longest), so that the outcome does
not depend on the cut.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until one of `stops` (non-empty strings) is complete.

    Attributes:
        matched: the stop string that ended the text, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._longest_hold = max((len(stop) for stop in stops), default=1) - 1
        self._held = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been seen; from then on `push` and `flush` return nothing."""
        return self.matched is not None

    def push(self, piece: str) -> str:
        """Takes the next piece; returns the text that is now certain not to belong to a stop string."""
        if self.matched is not None:
            return ""
        text = self._held + piece
        start = self._find(text)
        if start is not None:
            self._held = ""
            return text[:start]
        cut = len(text) - self._hold_length(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The text held back so far, for when no more pieces come: an unfinished stop string is ordinary text."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> int | None:
        """Start of the stop that ends first in `text`, noted in `matched`; None where there is none."""
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        _, start, self.matched = min(found)
        return start

    def _hold_length(self, text: str) -> int:
        """Length of the longest end of `text` that begins some stop string.

        A stop completed later starts inside this end: up to then each of its prefixes was the end of the text.
        """
        for length in range(min(self._longest_hold, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
