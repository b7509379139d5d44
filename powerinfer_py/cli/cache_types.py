"""`-ctk` and `-ctv` of commands that run a model and generate nothing; `powerinfer-run` has its own list of flags."""

from __future__ import annotations

import argparse
from typing import Any

from powerinfer_py.config import CacheType, RuntimeOptions


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Adds them under `powerinfer-run`'s names and defaults."""
    for short, what, default in (
        ("k", "keys", RuntimeOptions.cache_type_k),
        ("v", "values", RuntimeOptions.cache_type_v),
    ):
        parser.add_argument(
            f"-ct{short}",
            f"--cache-type-{short}",
            metavar="TYPE",
            choices=[kind.value for kind in CacheType],
            help=f"how the KV cache stores {what}: {', '.join(CacheType)} (default: {default})",
        )


def cache_types(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as keywords of `RuntimeOptions`; without the ones that were not."""
    given = {name: getattr(arguments, name) for name in ("cache_type_k", "cache_type_v")}
    return {name: CacheType(value) for name, value in given.items() if value is not None}
