"""Texts as windows of tokens, and which windows train, which stop the training, and which calibrate.

Invariant: a window never spans two files, is run from an empty cache and has one role, so that nothing a predictor is
measured on was seen while it was trained.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerinfer_py.errors import OptionError, printable
from powerinfer_py.tokenizer.tokenizer import Tokenizer

# Of every ten windows in a row one measures and one calibrates.
CYCLE = 10
# Of a text from a pipe or a device: some 250 million tokens. A device such as /dev/zero never ends.
_MAX_STREAM_BYTES = 1 << 30


class Role(IntEnum):
    """What a window is for."""

    TRAIN = 0
    VALIDATION = 1
    CALIBRATION = 2


@dataclass(frozen=True)
class Windows:
    """Token ids of every window, in the order of the files, and what each is for.

    window_roles: empty for the cycle: of every ten windows in a row eight train, one measures and one calibrates.
    """

    ids: tuple[tuple[int, ...], ...]
    window_roles: tuple[Role, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens in all windows."""
        return sum(map(len, self.ids))

    @property
    def longest(self) -> int:
        """Tokens in the longest window."""
        return max(map(len, self.ids))

    @property
    def roles(self) -> npt.NDArray[np.int8]:
        """The role of each token's window: int8 (n_tokens)."""
        of_cycle = [Role.TRAIN] * (CYCLE - 2) + [Role.VALIDATION, Role.CALIBRATION]
        per_window = self.window_roles or [of_cycle[i % CYCLE] for i in range(len(self.ids))]
        return np.repeat(np.array(per_window, np.int8), [len(window) for window in self.ids])

    @property
    def digest(self) -> str:
        """SHA-256 over the ids, the cuts between windows and the roles that are no cycle."""
        digest = hashlib.sha256(bytes(map(int, self.window_roles)))
        for window in self.ids:
            digest.update(len(window).to_bytes(8, "little"))
            digest.update(np.array(window, "<i4").tobytes())
        return digest.hexdigest()


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The files' texts. Raises OptionError for a file that cannot be read, is no UTF-8, has no text or another's."""
    texts: list[str] = []
    for path in paths:
        try:
            text = _read(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise OptionError(f"{printable(str(path))}: cannot read: {reason}") from None
        if not text.strip():
            raise OptionError(f"{printable(str(path))}: the text is empty")
        if text in texts:
            same = printable(str(paths[texts.index(text)]))
            raise OptionError(
                f"{printable(str(path))} holds the same text as {same}: predictors would be tested on what they learned"
            )
        texts.append(text)
    return texts


def _read(path: Path) -> str:
    """The whole text, line ends as in text files. Raises OSError, ValueError; OptionError for one without end."""
    if path.is_file():
        return path.read_text(encoding="utf-8")
    with path.open("rb") as file:
        data = file.read(_MAX_STREAM_BYTES + 1)
    if len(data) > _MAX_STREAM_BYTES:
        most = f"{_MAX_STREAM_BYTES >> 20} MiB"
        raise OptionError(f"{printable(str(path))}: is no file and gives more than {most}: write it to one")
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()


def cut_windows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    window: int,
    max_tokens: int | None = None,
    *,
    calibration_texts: Sequence[str] = (),
) -> Windows:
    """Windows of `window` tokens, each beginning with the token that begins texts where the model wants one.

    A file's rest that fills less than half a window is left out. max_tokens: stop after this many. calibration_texts:
    cut alike, their windows measure and calibrate in turn, and all of `texts` trains.
    Raises OptionError where the texts do not fill ten windows, the fewest that give every role one, or those for
    calibration not two.
    """
    windows = _cut(tokenizer, texts, window, max_tokens)
    if not calibration_texts:
        _require(len(windows), CYCLE, "training, stopping and calibrating on separate parts", window, max_tokens)
        return Windows(tuple(windows))
    measuring = _cut(tokenizer, calibration_texts, window, max_tokens)
    _require(len(windows), 1, "training", window, max_tokens)
    _require(len(measuring), 2, "stopping and calibrating on separate parts", window, max_tokens)
    in_turn = (Role.VALIDATION, Role.CALIBRATION)
    roles = [Role.TRAIN] * len(windows) + [in_turn[i % 2] for i in range(len(measuring))]
    return Windows((*windows, *measuring), tuple(roles))


def _require(n_windows: int, least: int, what: str, window: int, max_tokens: int | None) -> None:
    if n_windows < least:
        limit = "" if max_tokens is None else f" in the {max_tokens} tokens that are used of it"
        raise OptionError(
            f"the text fills {n_windows} windows of {window} tokens{limit}; {what} takes at least {least}: give more "
            "text or a smaller window"
        )


def _cut(tokenizer: Tokenizer, texts: Sequence[str], window: int, max_tokens: int | None) -> list[tuple[int, ...]]:
    begin = (tokenizer.bos_id,) if tokenizer.add_bos and tokenizer.bos_id is not None else ()
    fresh = window - len(begin)
    if fresh < 1:
        raise OptionError(f"a window of {window} tokens has no room for text: give at least {len(begin) + 1}")
    windows: list[tuple[int, ...]] = []
    left = max_tokens
    for text in texts:
        ids = tokenizer.encode(text, add_bos=False, add_eos=False)
        for start in range(0, len(ids), fresh):
            cut = (*begin, *ids[start : start + fresh])
            if left is not None:
                cut = cut[:left]
                left -= len(cut)
            if len(cut) * 2 >= window and len(cut) > len(begin):
                windows.append(cut)
    return windows
