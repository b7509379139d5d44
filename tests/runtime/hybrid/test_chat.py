"""Turns of a conversation on two sides: what both turns share stays in the cache, and the answers are the CPU's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_hybrid import CountedStandIn, split
from helpers_logits import nmse
from helpers_models import edited_copy

from powerinfer_py import LLM, SamplingParams
from powerinfer_py.gguf import ValueType
from powerinfer_py.runtime.hybrid.device import Arrangement

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
QUESTIONS = ("Who are you?", "And what else?", "Why?")
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@dataclass
class Talk:
    """What a conversation came to: answers, how many prompt tokens were in the cache, tokens and logits of forwards."""

    answers: list[list[int]] = field(default_factory=list)
    prompt_tokens: list[int] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    forwarded: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path) -> Path:
    values = {"tokenizer.chat_template": (TEMPLATE, ValueType.STRING)}
    return edited_copy(models["relu-llama"], tmp_path / "chat.powerinfer.gguf", values=values)


def talk(path: Path, device: CountedStandIn | None, answers: list[list[int]] | None = None) -> Talk:
    """Three turns, each with all before it. answers: what the assistant is taken to have said, instead of its own."""
    options: dict[str, Any] = {"threads": 2, "sparsity": "exact", "context_length": 256, "max_batch": 2}
    if device is not None:
        options |= {"vram_budget": 1.0, "device": device}
        options |= {"choose": lambda sizes, _fixed, _left: split(sizes.config, 0.4)}
    messages: list[dict[str, str]] = []
    found = Talk()
    with LLM(path, **options) as llm:
        forward = llm.engine.forward

        def watched(batch: Any, *args: Any, **named: Any) -> torch.Tensor:
            logits = forward(batch, *args, **named)
            found.forwarded[-1] += len(batch)
            found.logits.append(logits[-1:].clone())
            return logits

        llm.engine.forward = watched  # type: ignore[method-assign]
        for turn, question in enumerate(QUESTIONS):
            messages.append({"role": "user", "content": question})
            found.forwarded.append(0)
            answer = llm.chat(messages, GREEDY)
            found.answers.append(answer.token_ids)
            found.prompt_tokens.append(answer.stats.prompt_tokens)
            found.cached.append(answer.stats.cached_tokens)
            said = answer.token_ids if answers is None else answers[turn]
            messages.append({"role": "assistant", "content": llm.detokenize(said)})
    return found


@pytest.mark.parametrize("arrangement", [Arrangement.EAGER, Arrangement.FLAGS])
def test_a_turn_computes_what_follows_the_common_prefix(model: Path, arrangement: Arrangement) -> None:
    expected = talk(model, None)
    actual = talk(model, CountedStandIn(arrangement=arrangement))
    assert actual.answers == expected.answers
    assert actual.prompt_tokens == expected.prompt_tokens
    assert actual.cached == expected.cached
    assert actual.cached[0] == 0
    # Each turn finds at least the prompt of the turn before, up to where the answer began.
    assert all(actual.cached[i] >= actual.prompt_tokens[i - 1] - 2 for i in (1, 2))
    # A prompt's last token gives the first of the answer, whose last token is not computed any more.
    for turn in range(3):
        computed = actual.prompt_tokens[turn] - actual.cached[turn] + len(actual.answers[turn]) - 1
        assert actual.forwarded[turn] == expected.forwarded[turn] == computed
    assert nmse(torch.cat(actual.logits).numpy(), torch.cat(expected.logits).numpy()) < 1e-6


def test_another_conversation_is_no_continuation(model: Path) -> None:
    """What was said otherwise is computed anew from there on."""
    expected = talk(model, None)
    swapped = list(reversed(expected.answers))
    other_here, other_there = talk(model, None, swapped), talk(model, CountedStandIn(), swapped)
    assert other_there.answers == other_here.answers
    assert other_there.cached == other_here.cached
    assert np.isfinite(torch.cat(other_there.logits).numpy()).all()
    assert nmse(torch.cat(other_there.logits).numpy(), torch.cat(other_here.logits).numpy()) < 1e-6
