"""Every exception that this package raises on purpose.

One base class, `PowerInferError`; a subclass for each cause that a caller can act on. A command prints the message of
such an error as one line and exits with code 1; any other exception is a defect of the package.
"""

from __future__ import annotations

from pathlib import Path


class PowerInferError(Exception):
    """Base of all errors raised on purpose. `str(error)` is one line that a user can act on."""


class FileFormatError(PowerInferError):
    """A file is malformed, truncated, or not of the kind that was asked for.

    Attributes:
        path: the file, or None when the bytes did not come from one.
        offset: byte offset at which reading stopped making sense, or None when no single place is at fault.
    """

    def __init__(self, message: str, *, path: Path | str | None = None, offset: int | None = None) -> None:
        self.path = None if path is None else Path(path)
        self.offset = offset
        place = "" if self.path is None else f"{printable(str(self.path))}: "
        where = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{place}{message}{where}")


class ModelError(PowerInferError):
    """A well-formed file holds no model that can be run: tensors missing or misshapen, hyperparameters at odds."""


class UnsupportedError(PowerInferError):
    """The file asks for something this version does not do: an architecture, an activation, a weight type."""


class OptionError(PowerInferError):
    """A value given by the caller is out of range or contradicts another."""


class ContextError(PowerInferError):
    """A prompt does not fit the context; both lengths are in the message."""


class DeviceError(PowerInferError):
    """A device that was asked for does not exist or cannot be used."""


class TokenizerError(PowerInferError):
    """The vocabulary of a file cannot be used, or text or ids do not fit it."""


class ChatTemplateError(PowerInferError):
    """A chat template is missing, malformed, or exceeds the limits put on untrusted templates."""


class NumericalError(PowerInferError):
    """NaN or infinite values reached a place that must not see them, such as the sampler."""


def printable(text: str, limit: int = 120) -> str:
    """`text` safe for a terminal: control characters escaped, shortened to `limit` characters.

    Strings that come out of files are hostile until shown otherwise; messages must never carry escape sequences.
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."
