"""From parsed flags to the arguments of `LLM` and `SamplingParams`. Loads nothing but, for `-c 0`, a file's header."""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path
from typing import Any

from powerinfer_py.cli.run.prompts import unescaped, unreadable
from powerinfer_py.config import RuntimeOptions, SamplingParams
from powerinfer_py.errors import OptionError


def check_combination(args: argparse.Namespace, n_prompts: int) -> None:
    """Raises OptionError for flags that contradict each other."""
    interactive = is_interactive(args)
    if interactive and args.json:
        raise OptionError("--json cannot be combined with --interactive")
    if interactive and (n_prompts > 1 or args.parallel > 1):
        raise OptionError("--interactive takes one prompt and --parallel 1")
    if interactive and "-" in (*(args.file or []), args.prompts_file):
        raise OptionError("--interactive reads standard input itself; -f - cannot read it too")
    if args.system is not None and not interactive:
        raise OptionError("--system needs --interactive")
    if args.system is not None and is_plain(args):
        raise OptionError("--system belongs to a chat; --reverse-prompt, --in-prefix and --in-suffix go without one")
    if interactive and (args.explain or args.plot):
        raise OptionError("--explain and --plot watch given prompts, not --interactive")
    if args.gpu_index is not None and (args.reset_gpu_index or args.disable_gpu_index):
        raise OptionError("--gpu-index contradicts --reset-gpu-index and --disable-gpu-index")


def is_interactive(args: argparse.Namespace) -> bool:
    """Whether a conversation was asked for."""
    return bool(args.interactive or args.interactive_first)


def is_plain(args: argparse.Namespace) -> bool:
    """Whether the flags ask for a conversation without a chat template."""
    return bool(args.reverse_prompt or args.in_prefix or args.in_suffix or args.in_prefix_bos)


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """How to pick tokens; a seed is drawn where none was given. Reverse prompts end the text like stop strings."""
    stops = [*(args.stop or []), *(args.reverse_prompt or [])]
    return SamplingParams(
        max_tokens=max(args.n_predict, -1),
        temperature=args.temp,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
        repeat_last_n=args.repeat_last_n,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        logit_bias=dict(args.logit_bias or []),
        seed=secrets.randbelow(2**32) if args.seed < 0 else args.seed,
        n=args.parallel,
        stop=tuple(unescaped(stop) for stop in stops) if args.escape else tuple(stops),
        ignore_eos=args.ignore_eos,
    )


def llm_options(args: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Keyword arguments of `LLM` but the model. Reads the header of `model` for `-c 0`.

    Raises FileFormatError where the file of --gpu-index cannot be read.
    """
    from powerinfer_py.generation.llm import GROWN_BATCH

    return {
        "vram_budget": args.vram_budget,
        "sparsity": args.sparsity,
        "threads": args.threads,
        "threads_batch": args.threads_batch,
        "context_length": _own_context(model) if args.ctx_size == 0 else args.ctx_size,
        "batch_size": args.batch_size,
        # On a GPU the cache cannot grow, so that its sequences are counted beforehand.
        "max_batch": args.parallel if args.parallel > GROWN_BATCH or args.vram_budget else None,
        "cache_type_k": args.cache_type_k,
        "cache_type_v": args.cache_type_v,
        "main_gpu": args.main_gpu,
        "reset_gpu_index": args.reset_gpu_index,
        "disable_gpu_index": args.disable_gpu_index,
        "gpu_index": None if args.gpu_index is None else _readable(args.gpu_index),
        "activation": args.activation,
        "use_mmap": not args.no_mmap,
        "use_mlock": args.mlock,
        "repack": not args.no_repack,
    }


def _readable(path: str) -> str:
    """The path, of which a file can be read: one that is not used yet must be no misspelling either."""
    try:
        with Path(path).open("rb"):
            return path
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def _own_context(model: Path) -> int:
    from powerinfer_py.gguf import open_gguf
    from powerinfer_py.models.hyperparameters import read_config

    with open_gguf(model) as file:
        return read_config(file, RuntimeOptions()).n_ctx_train
