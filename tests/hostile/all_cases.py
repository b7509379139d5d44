"""Every case, in the order in which the worker reads them."""

from __future__ import annotations

from hostile import checkpoint_cases, gguf_cases, gpuidx_cases, model_cases, torch_cases, vocabulary_cases

CASES = (
    *gguf_cases.CASES,
    *gpuidx_cases.CASES,
    *model_cases.CASES,
    *torch_cases.CASES,
    *checkpoint_cases.CASES,
    *vocabulary_cases.CASES,
)
