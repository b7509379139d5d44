"""Tensors out of `.pt` files that come from strangers.

`torch.load(weights_only=True)` runs no code, but still hands out tensors that crash or exhaust the process when
touched: sparse ones with indices out of range, 1.6 KB files claiming 2^40 elements by a stride of 0, archives that
inflate a thousandfold. Everything is checked before it is used.

Invariant: a tensor handed out is dense, strided, lies within its storage, and its storage came whole from the file.
"""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from powerinfer_py.errors import FileFormatError, printable

if TYPE_CHECKING:
    from torch import Tensor

# torch stores tensors uncompressed: an archive that inflates by more than the headers' slack was made to.
_MAX_INFLATION = 1.5
_SLACK_BYTES = 1 << 16


def load_tensor(path: Path) -> Tensor:
    """The single tensor that `path` holds. Raises FileFormatError for anything else."""
    return _checked(path, "its content", _load(path))


def load_state(path: Path) -> dict[str, Tensor]:
    """A flat dictionary of tensors by name. Raises FileFormatError for anything else."""
    value = _load(path)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise FileFormatError("expected a dictionary of tensors by name", path=path)
    return {name: _checked(path, printable(name), tensor) for name, tensor in value.items()}


def _load(path: Path) -> Any:
    import torch

    try:
        _check_archive(path)
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileFormatError:
        raise
    except OSError as error:
        raise FileFormatError(f"cannot read: {error.strerror or error}", path=path) from None
    except Exception as error:
        # torch raises many types for a broken or forbidden pickle; its first line is the reason.
        reason = printable((str(error).splitlines() or [type(error).__name__])[0])
        raise FileFormatError(f"no file of plain tensors: {reason}", path=path) from None


def _check_archive(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        # A named pipe would be waited for.
        raise FileFormatError("no regular file", path=path)
    size = status.st_size
    if not zipfile.is_zipfile(path):
        raise FileFormatError("expected a .pt file as torch.save writes it since version 1.6", path=path)
    with zipfile.ZipFile(path) as archive:
        inflated = sum(entry.file_size for entry in archive.infolist())
    if inflated > _MAX_INFLATION * size + _SLACK_BYTES:
        raise FileFormatError(f"inflates from {size} to {inflated} bytes, which no honest .pt file does", path=path)


def _checked(path: Path, name: str, value: object) -> Tensor:
    """`value` as a tensor that takes no part in training: a saved parameter does, and numpy refuses those."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise FileFormatError(f"{name} is a {type(value).__name__}, expected a tensor", path=path)
    # A nested tensor calls itself strided, and has no sizes to check.
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
        raise FileFormatError(f"{name} is no dense tensor", path=path)
    if not value.is_contiguous():
        raise FileFormatError(f"{name} is not contiguous", path=path)
    needed = (value.storage_offset() + value.numel()) * value.element_size()
    held = value.untyped_storage().nbytes()
    if needed > held or held > path.stat().st_size:
        raise FileFormatError(f"{name} claims {needed} bytes in a storage of {held}", path=path)
    return value.detach()
