"""The model that runs when the user names none."""

from __future__ import annotations

from pathlib import Path

# A small ReLU model with predictors, activation statistics and a GPU index; models_data/README.md has its figures.
DEMO_MODEL = Path(__file__).parent.parent / "models_data" / "demo.powerinfer.gguf"


def default_model() -> Path | None:
    """The model that comes with the package, or None where somebody left it out."""
    return DEMO_MODEL if DEMO_MODEL.is_file() else None
