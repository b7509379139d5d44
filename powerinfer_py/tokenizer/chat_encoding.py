"""From a chat to token ids, so that only the template writes control tokens and no message can forge one.

The template is rendered twice: with the messages, and with unguessable placeholders in their place. What stands
between placeholders was written by the template alone; there, and nowhere else, spellings of control tokens become
those tokens. Both renderings must agree when the placeholders are filled in again, with the message's text as it is or
stripped of white space at either end, as many templates do.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from powerinfer_py.errors import ChatTemplateError, printable
from powerinfer_py.tokenizer.chat_template import ChatTemplate
from powerinfer_py.tokenizer.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    add_bos: bool | None = None,
    **extras: Any,
) -> list[int]:
    """Token ids of a chat. A beginning-of-text token that the template writes itself is not added again.

    A message that spells a control token stays text; roles and extras are the caller's own, extras as trusted as the
    template. Where the template transforms messages (cuts them, quotes them as JSON), their place in the prompt is
    unknown: then a space is put behind the first character of such spellings, and the control tokens found must be
    those of the placeholder rendering. Raises ChatTemplateError for a role that spells a control token, where neither
    way is safe, and where the template fails.
    """
    for index, message in enumerate(messages):
        role = message.get("role", "")
        if isinstance(role, str) and tokenizer.spells_control(role):
            raise ChatTemplateError(f"message {index}: role {printable(repr(role), 40)} spells a control token")
    options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "now": time.time(), **extras}
    text = template.render(messages, **options)
    try:
        masked, contents = _with_placeholders(tokenizer, messages)
        skeleton = _Skeleton(template.render(masked, **options), contents)
    except ChatTemplateError:
        # A template may refuse placeholders, for instance one that parses a message as JSON.
        skeleton = _Skeleton("", {})
    parts = skeleton.fill(text)
    if parts is not None:
        pieces = [
            piece for is_template, part in parts for piece in (tokenizer.split_special(part) if is_template else [part])
        ]
    else:
        pieces = _neutralised(tokenizer, template, messages, options, skeleton)
    return tokenizer.encode_parts(pieces, add_bos=add_bos, add_eos=False)


class _Skeleton:
    """A rendering with placeholders: what the template wrote (`literals`), and the messages between (`slots`)."""

    def __init__(self, rendering: str, contents: Mapping[str, str]) -> None:
        cut = re.split(f"({'|'.join(contents)})", rendering) if contents else [rendering]
        self.literals = cut[::2]
        self.slots = [contents[placeholder] for placeholder in cut[1::2]]

    def fill(self, text: str) -> list[tuple[bool, str]] | None:
        """`text` as (written by the template?, stretch) in order, or None where it is no filling of the skeleton.

        Walks all ways to fill at once, keyed by where they have got to in `text`, so time stays proportional to the
        number of slots times the number of places, however many fillings look alike.
        """
        if not text.startswith(self.literals[0]):
            return None
        start = len(self.literals[0])
        ways: dict[int, _Way] = {start: _Way(None, True, self.literals[0])}
        for content, literal in zip(self.slots, self.literals[1:], strict=True):
            reached: dict[int, _Way] = {}
            for start, way in ways.items():
                for variant in (content, content.strip(), content.rstrip(), content.lstrip()):
                    end = start + len(variant)
                    if text.startswith(variant, start) and text.startswith(literal, end):
                        reached.setdefault(end + len(literal), _Way(_Way(way, False, variant), True, literal))
            ways = reached
        last = ways.get(len(text))
        return None if last is None else last.stretches()


@dataclass(frozen=True)
class _Way:
    """The last stretch of a partly filled skeleton, linked to those before it."""

    before: _Way | None
    by_template: bool
    text: str

    def stretches(self) -> list[tuple[bool, str]]:
        found: list[tuple[bool, str]] = []
        way: _Way | None = self
        while way is not None:
            found.append((way.by_template, way.text))
            way = way.before
        return found[::-1]


def _with_placeholders(tokenizer: Tokenizer, messages: Messages) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The messages with every text but the role replaced, and placeholder -> text."""
    contents: dict[str, str] = {}
    masked = []
    for message in messages:
        copy = dict(message)
        for name, text in message.items():
            # An empty text stays: templates ask whether there is one.
            if name != "role" and (text.strip() or tokenizer.spells_control(text)):
                # Letters and digits only: no template trims, quotes or escapes them.
                copy[name] = f"x{secrets.token_hex(16)}x"
                contents[copy[name]] = text
        masked.append(copy)
    return masked, contents


def _neutralised(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Messages, options: dict[str, Any], skeleton: _Skeleton
) -> list[str | int]:
    """The chat with spellings of control tokens in messages broken up, split at those of the template."""
    safe = [{k: v if k == "role" else _broken_up(tokenizer, v) for k, v in message.items()} for message in messages]
    parts = tokenizer.split_special(template.render(safe, **options))
    written = [
        part for literal in skeleton.literals for part in tokenizer.split_special(literal) if isinstance(part, int)
    ]
    if [part for part in parts if isinstance(part, int)] != written:
        raise ChatTemplateError(
            "chat template: it changes messages so that control tokens in them cannot be told apart"
        )
    return parts


def _broken_up(tokenizer: Tokenizer, text: str) -> str:
    pieces: list[str] = []
    for part in tokenizer.split_special(text):
        spelling = part if isinstance(part, str) else tokenizer.token_text(part)
        pieces.append(spelling if isinstance(part, str) else f"{spelling[0]} {spelling[1:]}")
    return "".join(pieces)
