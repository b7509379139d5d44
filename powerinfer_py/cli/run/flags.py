"""Every flag of `powerinfer-run` as data: names, default, reader, help, and how it relates to PowerInfer's `main`.

Not the parser (parser.py), not the flags that are refused (refused.py). docs/flags.md is held against this table
by a test. Defaults of sampling and running come from config, so that the command and `LLM` cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from powerinfer_py.cli.values import integer, logit_bias, nonempty_text, number, unicode_text, vram_budget
from powerinfer_py.config import Activation, CacheType, RuntimeOptions, SamplingParams, Sparsity


class Origin(StrEnum):
    """How a flag relates to PowerInfer's `main`: the same there, there but with another default or meaning, or new."""

    SAME = "same"
    CHANGED = "changed"
    ADDED = "added"


@dataclass(frozen=True)
class Flag:
    """One flag. `metavar` None makes it a switch; `repeatable` collects its values in a list.

    shown_default: the default in words, where the value alone would not tell a reader what happens.
    """

    names: tuple[str, ...]
    help: str
    origin: Origin = Origin.SAME
    metavar: str | None = None
    read: Callable[[str], Any] = unicode_text
    default: Any = None
    shown_default: str | None = None
    choices: tuple[str, ...] | None = None
    repeatable: bool = False

    @property
    def key(self) -> str:
        """Attribute of the parsed arguments, from the first long name."""
        return next(name for name in self.names if name.startswith("--"))[2:].replace("-", "_")

    @property
    def long_name(self) -> str:
        """The first long name, which also forms `--name=value`."""
        return next(name for name in self.names if name.startswith("--"))

    @property
    def default_text(self) -> str:
        """The default as help and document show it."""
        if self.shown_default is not None:
            return self.shown_default
        if self.metavar is None:
            return "off"
        return "none" if self.default is None else str(self.default)


_SAMPLING = SamplingParams()
_RUNTIME = RuntimeOptions()
_COUNT = integer(1, 2**31 - 1)
# As many as the native kernels' pool takes.
_THREADS = integer(1, 1024)
_CACHE_TYPES = tuple(name.value for name in CacheType)

GROUPS: dict[str, tuple[Flag, ...]] = {
    "model and prompt": (
        Flag(
            ("-m", "--model"),
            "model file, PWRI or GGUF; what it is, its first bytes say",
            Origin.CHANGED,
            "FILE",
            nonempty_text,
            shown_default="the demo model that comes with the package",
        ),
        Flag(
            ("-p", "--prompt"),
            "prompt; once more for another result",
            Origin.CHANGED,
            "TEXT",
            repeatable=True,
            shown_default="empty",
        ),
        Flag(
            ("-f", "--file"),
            "file whose whole text is a prompt, a line break at its end left out; - reads standard input",
            Origin.CHANGED,
            "FILE",
            nonempty_text,
            repeatable=True,
        ),
        Flag(
            ("--prompts-file",),
            "file with one prompt a line, empty lines left out; - reads standard input",
            Origin.ADDED,
            "FILE",
            nonempty_text,
        ),
        Flag(("-e", "--escape"), r"\n, \t, \xHH and so on mean that character in prompts, inputs and stop strings"),
        Flag(("--parse-special",), "text that spells a control token in a prompt becomes that token", Origin.ADDED),
        Flag(("--verbose-prompt",), "list the tokens of each prompt on standard error"),
    ),
    "generation": (
        Flag(
            ("-n", "--n-predict"),
            "new tokens at most; 0 evaluates the prompt only; -1 and -2 go on until end of text or a full context",
            Origin.CHANGED,
            "N",
            integer(-2, 2**31 - 1),
            _SAMPLING.max_tokens,
        ),
        Flag(
            ("--keep",),
            "when the context is full, keep the first N prompt tokens, drop the older half of the rest and go on; "
            "0 stops there; -1 keeps the whole prompt",
            Origin.CHANGED,
            "N",
            integer(-1, 2**31 - 1),
            0,
        ),
        Flag(("--ignore-eos",), "never pick an end-of-text token"),
        Flag(
            ("--stop",),
            "string that ends the text and is no part of it",
            Origin.ADDED,
            "TEXT",
            nonempty_text,
            repeatable=True,
        ),
        Flag(
            ("-np", "--parallel"),
            "results per prompt, generated together; result k is seeded SEED + k",
            Origin.CHANGED,
            "N",
            integer(1, 1024),
            _SAMPLING.n,
        ),
    ),
    "sampling": (
        Flag(
            ("-s", "--seed"),
            "seed of the random numbers",
            metavar="N",
            read=integer(-(2**63), 2**64 - 1),
            default=-1,
            shown_default="-1 (any negative number: random, printed)",
        ),
        Flag(
            ("--temp",),
            "temperature; 0 or less picks the most likely token",
            Origin.SAME,
            "T",
            number(),
            _SAMPLING.temperature,
        ),
        Flag(
            ("--top-k",),
            "keep the K most likely tokens; 0 or less keeps all",
            Origin.SAME,
            "K",
            integer(),
            _SAMPLING.top_k,
        ),
        Flag(
            ("--top-p",),
            "keep the most likely tokens that together reach probability P; 1 keeps all",
            Origin.SAME,
            "P",
            number(0, 1),
            _SAMPLING.top_p,
        ),
        Flag(
            ("--min-p",),
            "keep tokens at least P times as likely as the most likely; 0 keeps all",
            Origin.SAME,
            "P",
            number(0, 1),
            _SAMPLING.min_p,
        ),
        Flag(
            ("--repeat-penalty",),
            "divides positive and multiplies other logits of recent tokens; 1 is off",
            Origin.CHANGED,
            "X",
            number(above=0),
            _SAMPLING.repeat_penalty,
        ),
        Flag(
            ("--repeat-last-n",),
            "how many tokens count as recent, the prompt's included; 0 is none, -1 all",
            Origin.SAME,
            "N",
            integer(-1, 2**31 - 1),
            _SAMPLING.repeat_last_n,
        ),
        Flag(
            ("--presence-penalty",),
            "subtracted from the logit of every recent token",
            Origin.SAME,
            "X",
            number(),
            _SAMPLING.presence_penalty,
        ),
        Flag(
            ("--frequency-penalty",),
            "subtracted from the logit of a recent token for each of its occurrences",
            Origin.SAME,
            "X",
            number(),
            _SAMPLING.frequency_penalty,
        ),
        Flag(
            ("-l", "--logit-bias"),
            "added to the logit of one token: 15043+1, 15043-1, 2-inf",
            metavar="TOKEN_ID(+/-)BIAS",
            read=logit_bias,
            repeatable=True,
        ),
    ),
    "interactive": (
        Flag(
            ("-i", "--interactive"),
            "converse: a chat where the file has a chat template, else as --reverse-prompt says",
            Origin.CHANGED,
        ),
        Flag(("--interactive-first",), "interactive; a plain dialogue begins with your input"),
        Flag(("--system",), "system message of the chat", Origin.ADDED, "TEXT", nonempty_text),
        Flag(
            ("-r", "--reverse-prompt"),
            "stop at this text; interactive without a chat template, it hands over to you",
            Origin.CHANGED,
            "TEXT",
            nonempty_text,
            repeatable=True,
        ),
        Flag(("--in-prefix",), "put before each input", metavar="TEXT", default="", shown_default="empty"),
        Flag(("--in-suffix",), "put after each input", metavar="TEXT", default="", shown_default="empty"),
        Flag(("--in-prefix-bos",), "put the begin-of-text token before each input"),
        Flag(
            ("--multiline-input",), r"input goes on over lines until one ends in \ (otherwise \ asks for another line)"
        ),
        Flag(("--simple-io",), "no line editing and no history of inputs"),
    ),
    "running": (
        Flag(
            ("-c", "--ctx-size"),
            "tokens a sequence may hold; 0 is the model's own context",
            Origin.CHANGED,
            "N",
            integer(0, 2**31 - 1),
            shown_default="the smaller of 4096 and the model's own, more where prompt and -n need it",
        ),
        Flag(("-t", "--threads"), "CPU threads", Origin.CHANGED, "N", _THREADS, shown_default="physical cores"),
        Flag(
            ("-tb", "--threads-batch"),
            "CPU threads for prompts",
            Origin.CHANGED,
            "N",
            _THREADS,
            shown_default="as --threads",
        ),
        Flag(
            ("-b", "--batch-size"), "most prompt tokens computed at once", Origin.SAME, "N", _COUNT, _RUNTIME.batch_size
        ),
        Flag(
            ("-ctk", "--cache-type-k"),
            "how the KV cache stores keys",
            Origin.ADDED,
            "TYPE",
            default=str(_RUNTIME.cache_type_k),
            choices=_CACHE_TYPES,
        ),
        Flag(
            ("-ctv", "--cache-type-v"),
            "how the KV cache stores values",
            Origin.ADDED,
            "TYPE",
            default=str(_RUNTIME.cache_type_v),
            choices=_CACHE_TYPES,
        ),
        Flag(
            ("--sparsity",),
            "which neurons are computed",
            Origin.ADDED,
            "MODE",
            default=str(_RUNTIME.sparsity),
            choices=tuple(mode.value for mode in Sparsity),
        ),
        Flag(
            ("--activation",),
            "activation function of the FFN",
            Origin.ADDED,
            "NAME",
            shown_default="as the file says",
            choices=tuple(name.value for name in Activation),
        ),
        Flag(
            ("--check-tensors",),
            "before loading, look for NaN, infinities and absurd scales in the file, which end the command by name",
            Origin.ADDED,
        ),
        Flag(("--mlock",), "keep the model's pages in memory"),
        Flag(("--no-mmap",), "read the file into memory rather than map it"),
        Flag(
            ("--no-repack",),
            "compute from the file's own pages and order: less memory, slower",
            Origin.ADDED,
        ),
    ),
    "GPU": (
        Flag(
            ("--vram-budget",),
            "GPU memory the process may use, in GiB; -1 is all that is free, 0 uses no GPU",
            Origin.CHANGED,
            "GIB",
            vram_budget,
            shown_default="unset",
        ),
        Flag(
            ("-mg", "--main-gpu"),
            "number of the GPU to use",
            Origin.CHANGED,
            "N",
            integer(0, 2**31 - 1),
            shown_default="unset",
        ),
        Flag(
            ("--gpu-index",),
            "file that says which neurons go on the GPU",
            Origin.ADDED,
            "FILE",
            nonempty_text,
            shown_default="the one beside the model",
        ),
        Flag(("--reset-gpu-index",), "solve the placement of neurons again"),
        Flag(("--disable-gpu-index",), "place no neurons on the GPU"),
    ),
    "output": (
        Flag(("--json",), "print one JSON object at the end and no text before it", Origin.ADDED),
        Flag(
            ("--explain",),
            "afterwards say of each layer which share of its neurons fired and was computed where, and its time",
            Origin.ADDED,
        ),
        Flag(
            ("--plot",),
            "draw what fired, layers x tokens, and how few neurons did most of it, as .png, .svg or .pdf",
            Origin.ADDED,
            "FILE",
            nonempty_text,
        ),
    ),
}

FLAGS: tuple[Flag, ...] = tuple(flag for flags in GROUPS.values() for flag in flags)
