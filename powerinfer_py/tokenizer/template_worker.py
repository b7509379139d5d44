"""Renders chat templates in a process of its own, started by its file name; imports nothing of the package.

What a template can cost is bounded by the kernel: memory by RLIMIT_AS, processor time by an interval timer whose signal
kills, written files by RLIMIT_FSIZE. Invariant: one line of JSON comes in, one line goes out, or the process is gone.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

# Beyond what the interpreter and jinja2 take themselves.
LIMIT_BYTES = 64 << 20
LIMIT_CPU_S = 0.6
LIMIT_ITERATIONS = 100_000
LIMIT_OUTPUT_CHARACTERS = 4 << 20
COUNTED = "counted_"


class LimitError(Exception):
    """A template asked for more than it may have; the message says of what."""


class Renderer:
    """One template, compiled once. The iterations of all loops of a rendering are counted together."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._iterations = 0
        self._now = datetime.fromtimestamp(0)
        self._template = self._environment().from_string(source)

    def render(self, variables: dict[str, Any], now: float) -> str:
        """Text of the template. Raises whatever the template does, or LimitError."""
        self._iterations = 0
        self._now = datetime.fromtimestamp(now)
        pieces: list[str] = []
        size = 0
        for piece in self._template.generate(variables):
            size += len(piece)
            if size > LIMIT_OUTPUT_CHARACTERS:
                raise LimitError(f"more than {LIMIT_OUTPUT_CHARACTERS} characters of output")
            pieces.append(piece)
        return "".join(pieces)

    def _environment(self) -> Any:
        """The environment that Hugging Face renders chat templates in, with counted loops."""
        environment = counting_environment()
        environment.filters[COUNTED] = pass_context(self._counted)
        environment.filters["tojson"] = to_json
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: self._now.strftime(form)
        return environment

    def _counted(self, _context: object, items: Iterable[Any]) -> list[Any]:
        """`items` as a list, for loops know their length. A filter that takes the context is never folded away."""
        counted = []
        for item in items:
            self._iterations += 1
            if self._iterations > LIMIT_ITERATIONS:
                raise LimitError(f"more than {LIMIT_ITERATIONS} loop iterations")
            counted.append(item)
        return counted


def counting_environment() -> Any:
    """A sandboxed environment in which every `for` loop passes what it runs over through the filter `COUNTED`."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}` marks the assistant's text for training; rendering takes its body as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class CountingEnvironment(ImmutableSandboxedEnvironment):
        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            template = super()._parse(source, name, filename)
            for loop in template.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, COUNTED, [], [], None, None, lineno=loop.lineno)
            template.set_environment(self)
            return template

    return CountingEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock])


def pass_context(function: Any) -> Any:
    """`function` as a jinja2 filter that is given the context; a bound method cannot be marked itself."""
    import jinja2

    return jinja2.pass_context(lambda *arguments: function(*arguments))


def raise_exception(message: object) -> NoReturn:
    """What templates call to refuse a conversation."""
    from jinja2.exceptions import TemplateError

    raise TemplateError(str(message))


def to_json(value: object, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON as Hugging Face writes it: unlike jinja2's own filter, without escaping for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def answer(request: dict[str, Any], renderers: list[Renderer]) -> dict[str, str]:
    """The reply to one request: `text`, or `error`. renderers: the one of the last source, kept up to date."""
    from jinja2.exceptions import TemplateSyntaxError

    try:
        if not renderers or renderers[0].source != request["source"]:
            renderers[:] = [Renderer(request["source"])]
        return {"text": renderers[0].render(request["variables"], request["now"])}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno}: {error.message}"}
    except MemoryError:
        return {"error": f"more than {LIMIT_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "too deeply nested"}
    except Exception as error:
        return {"error": str(error) or type(error).__name__}


def address_space_bytes() -> int:
    """What this process has reserved of its address space; a plain figure where there is no /proc to ask."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123, pathlib is not imported for this alone
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 192 << 20


def main() -> None:
    """Serves requests until standard input ends. The first line of input is the module search path."""
    sys.path[:] = json.loads(sys.stdin.readline())
    from jinja2 import ext, sandbox

    # Loaded before the limits, so that a small address space does not stop an import half-way.
    del ext, sandbox
    limit = address_space_bytes() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    print("ready", flush=True)
    renderers: list[Renderer] = []
    for line in sys.stdin:
        # SIGPROF's default action ends the process, also inside one long C call, where a Python handler would wait.
        signal.setitimer(signal.ITIMER_PROF, LIMIT_CPU_S)
        reply = answer(json.loads(line), renderers)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
