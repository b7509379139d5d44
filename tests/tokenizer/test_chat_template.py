"""Chat templates: what they render, and that a hostile one ends in one line, in bounded time and memory."""

from __future__ import annotations

import gc
import os
import resource
import threading
import time
from typing import Any

import pytest
from helpers_vocabulary import byte_level_metadata

from powerinfer_py.errors import ChatTemplateError
from powerinfer_py.tokenizer import ChatTemplate, load_tokenizer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "Hello"}]


def rendered(source: str, messages: list[dict[str, str]] = HELLO, **options: Any) -> str:
    template = ChatTemplate(source, "<s>", "</s>")
    try:
        return template.render(messages, **options)
    finally:
        template.close()


def test_chatml() -> None:
    assert rendered(CHATML) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert rendered(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}{{ eos_token }}", "<s></s>"),
        ("  {% if true %}\nA\n  {% endif %}\nB", "A\nB"),
        ("{{ {'b': '<ü>', 'a': [1, none]} | tojson }}", '{"b": "<ü>", "a": [1, null]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        (
            "{% for i in 'abc' %}{% if loop.first %}{% continue %}{% endif %}{{ i }}/{{ loop.length }}{% endfor %}",
            "b/3c/3",
        ),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "Hello!"),
        ("{{ tools | length }} {{ depth }}", "2 3"),
        ("{{ strftime_now('%Y-%m-%d') }}", "2001-09-09"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{% for k, v in {'x': 1}.items() %}{{ k }}={{ v }}{% else %}none{% endfor %}", "x=1"),
        ("{{ messages[0].missing }}|{% for x in missing %}{{ x }}{% endfor %}", "|"),
        ("😀{{ messages[0]['content'] | upper | trim }}\n", "😀HELLO"),
    ],
)
def test_what_templates_use(source: str, expected: str) -> None:
    options = {"now": 1_000_000_000.0 + 43_200, "tools": [{"a": 1}, {}], "depth": 3}
    assert rendered(source, **options) == expected


def test_one_process_renders_all_and_goes_with_the_template() -> None:
    template = ChatTemplate(CHATML)
    for content in ("a", "b\n\x00\u2028😀", "\ud800"):
        assert content in template.render([{"role": "user", "content": content}])
    process = template._process._process
    assert process is not None and process.poll() is None
    start = time.perf_counter()
    for _ in range(20):
        template.render(HELLO)
    assert time.perf_counter() - start < 1.0
    del template
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_threads_share_a_template() -> None:
    template = ChatTemplate(CHATML)
    wrong: list[str] = []

    def use(name: str) -> None:
        texts = [template.render([{"role": "user", "content": name}]) for _ in range(20)]
        wrong.extend(text for text in texts if name not in text)

    threads = [threading.Thread(target=use, args=(f"user {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    template.close()
    assert wrong == []


def test_a_template_can_refuse() -> None:
    with pytest.raises(ChatTemplateError, match=r"chat template: roles must alternate.x1b"):
        rendered("{{ raise_exception('roles must alternate\x1b') }}")


HOSTILE = {
    "unfinished": "{% for a in",
    "unknown filter": "{{ 'a' | nosuch }}",
    "undefined": "{{ x.y.z }}",
    "multiplied": "{{ 'a' * 10**9 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "constant loops": "{% for a in [1,1,1,1,1,1,1,1,1,1] %}" * 9 + "x" + "{% endfor %}" * 9,
    "silent loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "padding": "{{ 'a'.center(10**10) }}",
    "filter padding": "{{ 'a' | center(10**10) }}",
    "percent format": "{{ '%999999999s' % 'x' }}",
    "format filter": "{{ '%999999999s' | format('x') }}",
    "brace format": "{{ '{:>999999999}'.format('x') }}",
    "recursion": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "exponential macros": "".join(
        f"{{% macro f{i}() %}}{{{{ f{i - 1}() }}}}{{{{ f{i - 1}() }}}}{{% endmacro %}}" for i in range(1, 40)
    ).replace("{{ f0() }}", "")
    + "{{ f39() }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "replacing": "{% set ns = namespace(x='a') %}"
    "{% for i in range(99) %}{% set ns.x = ns.x.replace('a', 'aaaa') %}{% endfor %}",
    "joined": "{{ ('a,' * 100000).split(',') | join('b' * 100000) }}",
    "mapped": "{{ range(100000) | map('string') | map('center', 100000) | join }}",
    "batch": "{{ 'x' | batch(10**9, 'y') | list }}",
    "words": "{{ lipsum(n=100000) }}",
    "deep": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if true %}" * 2000 + "{% endif %}" * 2000,
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    "slow sum": "{{ range(100000) | map('pprint') | map('wordcount') | sum(start=9 ** 99999) }}{{ 7 ** 9999999 }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_one_line(name: str) -> None:
    processor_before = resource.getrusage(resource.RUSAGE_CHILDREN)
    own_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ChatTemplateError, match=r"^chat template: ") as caught:
        rendered(HOSTILE[name])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 240
    processor = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, not wall time: that is what is limited, and it does not depend on what else the machine does.
    used = processor.ru_utime + processor.ru_stime - processor_before.ru_utime - processor_before.ru_stime
    assert used < 1.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - own_before < 32 << 10
    # The counter holds the largest child so far, of whatever test.
    assert processor.ru_maxrss <= max(processor_before.ru_maxrss, 320 << 10)


def test_a_killed_renderer_is_replaced() -> None:
    spin = "{% set n = messages | length + 8 %}{% if messages[0].content == 'spin' %}{{ n ** (n ** n) }}{% endif %}"
    template = ChatTemplate(spin + "{{ messages[0].content }}")
    for _ in range(2):
        with pytest.raises(ChatTemplateError, match="too long"):
            template.render([{"role": "user", "content": "spin"}])
        assert template.render(HELLO) == "Hello"
    template.close()


@pytest.mark.parametrize(
    "messages",
    [
        [{"content": "x"}],
        [{"role": 1, "content": "x"}],
        [{"role": "user", "content": None}],
        ["user"],
        [{"role": "user", "content": []}],
    ],
)
def test_messages_must_be_text(messages: Any) -> None:
    with pytest.raises(ChatTemplateError, match="message 0"):
        ChatTemplate(CHATML).render(messages)


def test_extras_must_be_json() -> None:
    with pytest.raises(ChatTemplateError, match="values must be JSON"):
        rendered(CHATML, tools=[object()])


def test_from_metadata() -> None:
    metadata = byte_level_metadata()
    tokenizer = load_tokenizer(metadata)
    assert ChatTemplate.from_metadata(metadata, tokenizer) is None
    template = ChatTemplate.from_metadata({**metadata, "tokenizer.chat_template": CHATML}, tokenizer)
    assert template is not None and (template.bos_token, template.eos_token) == ("<|im_start|>", "<|endoftext|>")
    with pytest.raises(ChatTemplateError, match="must be a string, not int"):
        ChatTemplate.from_metadata({**metadata, "tokenizer.chat_template": 3}, tokenizer)
    with pytest.raises(ChatTemplateError, match="has 2000000 characters"):
        ChatTemplate("x" * 2_000_000)
