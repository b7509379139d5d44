"""Which model file `-m` means: the file itself, or the only one in a folder. Files are told by content, not by name."""

from __future__ import annotations

from pathlib import Path

from powerinfer_py.errors import OptionError, PowerInferError, printable
from powerinfer_py.gguf import keys, open_gguf

_MAGICS = (b"GGUF", b"PWRI")


def model_file(path: Path) -> Path:
    """The model at `path`. Raises OptionError where a folder holds none, or several, which it names."""
    if not path.is_dir():
        return path
    models = models_in(path)
    if len(models) == 1:
        return models[0]
    folder = printable(str(path), 400)
    if not models:
        raise OptionError(f"{folder} holds no model file")
    names = ", ".join(printable(model.name) for model in models)
    raise OptionError(f"{folder} holds {len(models)} model files: name one with -m: {names}")


def models_in(folder: Path) -> list[Path]:
    """Model files of a folder by name; of one that is split the first part, and no gpuidx files."""
    models: set[Path] = set()
    for path in sorted(folder.iterdir()):
        if path.is_file() and _has_magic(path):
            try:
                with open_gguf(path) as file:
                    if file.get_str(keys.ARCHITECTURE) != keys.GPU_INDEX_ARCHITECTURE and file.tensors:
                        models.add(file.paths[0])
            except PowerInferError:
                # One that cannot be read is named all the same: it may be the one that was meant.
                models.add(path)
    return sorted(models)


def _has_magic(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) in _MAGICS
    except OSError:
        return False
