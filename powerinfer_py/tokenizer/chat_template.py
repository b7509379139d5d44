"""Chat templates: jinja2 sources from model files, rendered to the text of a prompt. Not a tokenizer.

A template is code from a stranger. It runs in jinja2's immutable sandbox inside a process with hard limits, see
`template_process`; whatever it does ends in a text or in a ChatTemplateError of one line.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from powerinfer_py.errors import ChatTemplateError
from powerinfer_py.tokenizer.template_process import TemplateProcess
from powerinfer_py.tokenizer.tokenizer import Tokenizer

KEY = "tokenizer.chat_template"
MAX_SOURCE_CHARACTERS = 1 << 20


class ChatTemplate:
    """One template with the beginning- and end-of-text tokens it may write.

    Making one is cheap; a malformed source is reported by the first rendering.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        if not isinstance(source, str):
            raise ChatTemplateError(f"{KEY} must be a string, not {type(source).__name__}")
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError(f"{KEY} has {len(source)} characters, at most {MAX_SOURCE_CHARACTERS} are read")
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._process = TemplateProcess()

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a file, or None where it has none. Raises ChatTemplateError where it is not text."""
        source = metadata.get(KEY)
        if source is None:
            return None
        bos, eos = (
            "" if token is None else tokenizer.token_text(token) for token in (tokenizer.bos_id, tokenizer.eos_id)
        )
        return cls(source, bos, eos)  # type: ignore[arg-type]

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = True,
        *,
        now: float | None = None,
        **extras: Any,
    ) -> str:
        """The prompt as text.

        messages: role and content each. now: what `strftime_now` takes for the present (seconds since the epoch).
        extras: further variables, anything JSON can hold. Raises ChatTemplateError where the template is malformed,
        raises one itself, or meets a limit.
        """
        variables = {
            "messages": _plain_messages(messages),
            "add_generation_prompt": bool(add_generation_prompt),
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **extras,
        }
        return self._process.render(self.source, variables, time.time() if now is None else now)

    def close(self) -> None:
        """Ends the process that renders; the next rendering starts another."""
        self._process.close()


def _plain_messages(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    plain = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ChatTemplateError(f"message {index} must have a role and a content, both text")
        for name, value in message.items():
            if not isinstance(value, str):
                raise ChatTemplateError(f"message {index}: {name} must be text, not {type(value).__name__}")
        plain.append(dict(message))
    return plain
