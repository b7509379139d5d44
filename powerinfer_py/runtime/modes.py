"""Which sparsity mode a model runs in, and which threshold its predictors are held against."""

from __future__ import annotations

from powerinfer_py.config import ModelConfig, Sparsity
from powerinfer_py.errors import OptionError


def resolve_sparsity(wanted: Sparsity, config: ModelConfig) -> Sparsity:
    """Turns AUTO into a mode and refuses a mode that the model cannot run in.

    AUTO means PREDICTOR where there are predictors, EXACT for other PWRI files, DENSE for ordinary GGUF files.
    """
    if wanted is Sparsity.AUTO:
        if config.has_predictors and config.activation.is_sparse:
            return Sparsity.PREDICTOR
        return Sparsity.EXACT if config.is_powerinfer and config.activation.is_sparse else Sparsity.DENSE
    if wanted is not Sparsity.DENSE and not config.activation.is_sparse:
        raise OptionError(
            f"sparsity '{wanted}' needs a ReLU-type activation; this model's is {config.activation}, "
            "which never rests: use 'dense'"
        )
    if wanted is Sparsity.PREDICTOR and not config.has_predictors:
        raise OptionError("sparsity 'predictor' needs predictors (fc1, fc2), and this file has none: use 'exact'")
    return wanted
