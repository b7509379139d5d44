"""Samples from the demo model, looks for copied text, and asks another model what it thinks of them.

    python tools/evaluate_demo_model.py demo --text texts/*.txt --model demo.powerinfer.gguf \\
        --judge SmolLM2-135M-Instruct.gguf --samples samples.txt

The last line is one JSON object: the judge's perplexity on the samples and on held-out text cut alike, their ratio, and
the longest run of tokens that a sample shares with the training text.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from demo_checkpoint import read_checkpoint
from demo_corpus import read_corpus
from demo_evaluation import excerpts, judged_perplexity, longest_copied_run, sample
from demo_model import DemoModel
from demo_tokenizer import EOS, encode_chapters, load_tokenizer

from powerinfer_py.errors import PowerInferError

PROMPTS = (
    "The ball",
    "Mrs. Weston",
    "It was a fine",
    "My dear sister",
    "The letter",
    "Her father",
    "When they had",
    "On the following morning",
    '"I cannot',
    "Mr. Darcy",
    "Anne had",
    "The two ladies",
    '"And pray,',
    "Elinor",
    "After dinner",
    "Catherine was",
    "Sir Thomas",
    "There was no",
    "In the evening",
    '"You are',
)


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures; writes the samples where asked."""
    import torch

    torch.set_num_threads(arguments.threads)
    model = read_checkpoint(arguments.checkpoint) if arguments.model is None else None
    tokenizer = load_tokenizer(arguments.checkpoint / "tokenizer.model")
    corpus = read_corpus(arguments.text)
    training = encode_chapters(tokenizer, corpus.of("train"))
    held_out = encode_chapters(tokenizer, corpus.of("held_out"))
    samples = _of_file(arguments, tokenizer) if model is None else _of_checkpoint(model, arguments, tokenizer)
    texts = [tokenizer.decode(ids) for ids in samples]
    runs = [longest_copied_run(ids, training.tokens.tolist()) for ids in samples]
    if arguments.samples:
        arguments.samples.write_text("\n\n----\n\n".join(texts) + "\n", encoding="utf-8")
    result: dict[str, Any] = {
        "sampled_from": (arguments.checkpoint if arguments.model is None else arguments.model).name,
        "samples": len(texts),
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "longest_copied_run": max(runs),
        "copied_runs": runs,
    }
    if arguments.judge:
        from powerinfer_py import LLM

        with LLM(arguments.judge, threads=arguments.threads) as judge:
            on_samples = judged_perplexity(judge, texts)
            on_text = judged_perplexity(judge, excerpts(held_out, tokenizer, len(texts), arguments.tokens))
        result |= {"judge_on_samples": on_samples, "judge_on_held_out": on_text, "ratio": on_samples / on_text}
    return result


def _of_checkpoint(model: DemoModel, arguments: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """Tokens of each sample, prompt included, from the weights as they were trained."""
    samples = []
    for seed, prompt in enumerate(PROMPTS[: arguments.count], start=1):
        ids = tokenizer.encode(prompt)
        new = sample(model, ids, arguments.tokens - len(ids), seed, arguments.temperature, arguments.top_p)
        samples.append(ids + new)
    return samples


def _of_file(arguments: argparse.Namespace, tokenizer: Any) -> list[list[int]]:
    """The same from a model file, in the mode that it is for."""
    from powerinfer_py import LLM, SamplingParams

    samples = []
    with LLM(arguments.model, threads=arguments.threads) as llm:
        for seed, prompt in enumerate(PROMPTS[: arguments.count], start=1):
            ids = tokenizer.encode(prompt)
            params = SamplingParams(
                max_tokens=max(0, arguments.tokens - len(ids)),
                temperature=arguments.temperature,
                top_k=0,
                top_p=arguments.top_p,
                min_p=0.0,
                seed=seed,
            )
            new = llm.generate(prompt, params)[0].token_ids
            samples.append(ids + [token for token in new if token != EOS])
    return samples


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument("checkpoint", type=Path, help="the folder that train_demo_model.py wrote")
    result.add_argument(
        "--text", type=Path, nargs="+", required=True, metavar="FILE", help="the books it was made from"
    )
    result.add_argument("--model", type=Path, metavar="FILE", help="sample from this model file made from it instead")
    result.add_argument("--judge", type=Path, metavar="MODEL", help="a GGUF file of a general language model")
    result.add_argument("--samples", type=Path, metavar="FILE", help="write the samples here")
    result.add_argument("--count", type=int, default=len(PROMPTS), help="of samples (default: %(default)s)")
    result.add_argument("--tokens", type=int, default=200, help="of each, prompt included (default: %(default)s)")
    result.add_argument("--temperature", type=float, default=0.7, help="(default: %(default)s)")
    result.add_argument("--top-p", type=float, default=0.95, help="(default: %(default)s)")
    result.add_argument("--threads", type=int, default=2, help="(default: %(default)s)")
    return result


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; the last line printed is one JSON object."""
    try:
        print(json.dumps(evaluate(parser().parse_args(argv))))
    except PowerInferError as error:
        print(f"evaluate_demo_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
