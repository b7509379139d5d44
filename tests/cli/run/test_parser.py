"""The parser of `powerinfer-run`: every flag, every refusal, every default, and how wrong usage is reported."""

from __future__ import annotations

import pytest

from powerinfer_py.cli.run.flags import FLAGS, Flag, Origin
from powerinfer_py.cli.run.parser import build_parser, parse
from powerinfer_py.cli.run.refused import REFUSED
from powerinfer_py.config import RuntimeOptions, SamplingParams

# Every flag that the parser of PowerInfer's `main` knows (commit d3ebd7c), --help apart.
_POWERINFER_NAMES = """
    -s --seed -t --threads -tb --threads-batch -p --prompt -e --escape --prompt-cache --prompt-cache-all
    --prompt-cache-ro -f --file -n --n-predict --top-k -c --ctx-size --rope-freq-base --rope-freq-scale --rope-scaling
    --rope-scale --yarn-orig-ctx --yarn-ext-factor --yarn-attn-factor --yarn-beta-fast --yarn-beta-slow --memory-f32
    --top-p --min-p --temp --tfs --typical --repeat-last-n --repeat-penalty --frequency-penalty --presence-penalty
    --mirostat --mirostat-lr --mirostat-ent --cfg-negative-prompt --cfg-negative-prompt-file --cfg-scale -b --batch-size
    --keep --draft --chunks -np --parallel -ns --sequences --p-accept -pa --p-split -ps -m --model -md --model-draft
    -a --alias --lora --lora-scaled --lora-base --reset-gpu-index --disable-gpu-index --mmproj --image -i --interactive
    --embedding --interactive-first -ins --instruct --infill --multiline-input --simple-io -cb --cont-batching --color
    --mlock --gpu-layers -ngl --n-gpu-layers --gpu-layers-draft -ngld --n-gpu-layers-draft --main-gpu -mg
    --tensor-split -ts --vram-budget --no-mul-mat-q -nommq --no-mmap --numa --verbose-prompt -r --reverse-prompt
    -ld --logdir --perplexity --all-logits --ppl-stride --ppl-output-type --hellaswag --hellaswag-tasks --ignore-eos
    --no-penalize-nl -l --logit-bias --random-prompt --in-prefix-bos --in-prefix --in-suffix --grammar --grammar-file
    --log-test --log-disable --log-enable --log-new --log-append --log-file
"""
POWERINFER_FLAGS = frozenset(_POWERINFER_NAMES.split())
ACCEPTED = [name for flag in FLAGS for name in flag.names]
REFUSED_NAMES = [name for refused in REFUSED for name in refused.names]


def usage_error(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a usage error."""
    with pytest.raises(SystemExit) as leave:
        parse(argv)
    captured = capsys.readouterr()
    assert leave.value.code == 2
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("powerinfer-run: error: ")
    return captured.err


def test_every_flag_of_powerinfer_is_accepted_or_refused_by_name() -> None:
    assert set(ACCEPTED) | set(REFUSED_NAMES) >= POWERINFER_FLAGS
    assert set(REFUSED_NAMES) <= POWERINFER_FLAGS
    assert len(set(ACCEPTED + REFUSED_NAMES)) == len(ACCEPTED + REFUSED_NAMES)


def test_origin_says_whether_powerinfer_has_a_flag() -> None:
    for flag in FLAGS:
        in_powerinfer = set(flag.names) <= POWERINFER_FLAGS
        assert in_powerinfer == (flag.origin is not Origin.ADDED), flag.names


def test_the_parser_has_the_flags_of_the_table() -> None:
    options = set(build_parser()._option_string_actions)
    assert options == {*ACCEPTED, "-h", "--help", "--version"}


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_refused_flags_are_named_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = usage_error(["-p", "x", name, "1"], capsys)
    assert f"{name} is not supported: " in line
    assert "..." not in line


def test_a_refused_name_as_a_value_is_a_value() -> None:
    assert parse(["-p", "--lora"]).prompt == ["--lora"]


def test_a_refused_flag_with_its_value_joined(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--lora_base is not" not in usage_error(["--lora_base=x"], capsys)
    assert "--lora-base is not supported" in usage_error(["--lora-base=x"], capsys)


def test_defaults_are_those_of_the_configuration() -> None:
    args = parse([])
    params, options = SamplingParams(), RuntimeOptions()
    assert (args.n_predict, args.temp, args.top_k, args.top_p) == (-1, 0.8, 40, 0.95)
    assert (args.min_p, args.repeat_penalty, args.repeat_last_n) == (0.05, 1.0, 64)
    assert (args.presence_penalty, args.frequency_penalty) == (params.presence_penalty, params.frequency_penalty)
    assert (args.parallel, args.keep, args.seed) == (params.n, 0, -1)
    assert (args.batch_size, args.sparsity) == (512, options.sparsity)
    unset = (args.model, args.prompt, args.ctx_size, args.threads, args.threads_batch, args.vram_budget, args.main_gpu)
    assert unset == (None,) * 7


def sample_value(flag: Flag) -> str:
    if flag.choices:
        return flag.choices[-1]
    return {"logit_bias": "3+1", "top_p": "0.5", "min_p": "0.5"}.get(flag.key, "2")


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_name_of_a_flag_sets_it(name: str) -> None:
    flag = next(flag for flag in FLAGS if name in flag.names)
    value = [] if flag.metavar is None else [sample_value(flag)]
    changed = getattr(parse([name, *value]), flag.key)
    assert changed != getattr(parse([]), flag.key)
    if name.startswith("--"):
        assert getattr(parse([name.replace("-", "_").replace("__", "--", 1), *value]), flag.key) == changed
        if value:
            assert getattr(parse([f"{name}={value[0]}"]), flag.key) == changed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--top-p", "2"], "argument --top-p: must be from 0 to 1, not '2'"),
        (["--min-p", "-0.1"], "argument --min-p: must be from 0 to 1"),
        (["-n", "x"], "argument -n/--n-predict: expected a whole number, not 'x'"),
        (["-n", "-3"], "argument -n/--n-predict: must be from -2 to 2147483647, not '-3'"),
        (["-n", "2147483648"], "argument -n/--n-predict: must be from -2 to 2147483647, not '2147483648'"),
        (["--repeat-penalty", "0"], "argument --repeat-penalty: must be larger than 0"),
        (["-t", "0"], "argument -t/--threads: must be from 1 to 1024, not '0'"),
        (["-t", "1025"], "argument -t/--threads: must be from 1 to 1024, not '1025'"),
        (["-tb", "1025"], "argument -tb/--threads-batch: must be from 1 to 1024, not '1025'"),
        (["-s", str(2**64)], "argument -s/--seed: must be"),
        (["--parallel", "0"], "argument -np/--parallel: must be"),
        (["--vram-budget", "8GB"], "argument --vram-budget: expected a number"),
        (["--sparsity", "some"], "argument --sparsity: invalid choice: 'some'"),
        (["-l", "x"], "argument -l/--logit-bias: expected TOKEN_ID(+/-)BIAS"),
        (["--stop", ""], "argument --stop: must not be empty"),
        (["-m", ""], "argument -m/--model: must not be empty"),
        (["--json=1"], "argument --json: ignored explicit argument '1'"),
        (["-n"], "argument -n/--n-predict: expected a value"),
        (["-p", "-n", "3"], "expected a value before -n; write --prompt=-n"),
        (["-p", "--"], "the value cannot be -- alone"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--top", "3"], "unrecognized arguments: --top"),
        (["one", "two"], "unrecognized arguments: two"),
        (["a\x1b[31m", "b\x1b[31m"], r"unrecognized arguments: b\x1b[31m"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in usage_error(argv, capsys)


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.choices], ids=lambda flag: flag.key)
def test_choices_are_shown_by_their_plain_names(flag: Flag, capsys: pytest.CaptureFixture[str]) -> None:
    line = usage_error([flag.long_name, "foo"], capsys).replace("'", "")
    assert f"(choose from {', '.join(flag.choices or ())})" in line
    assert "<" not in line


def test_as_many_threads_as_the_native_pool_takes() -> None:
    assert (parse(["-t", "1024"]).threads, parse(["-tb", "1024"]).threads_batch) == (1024, 1024)


def test_help_shows_every_flag_its_default_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse(["--help"])
    assert leave.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "examples:" in text
    for flag in FLAGS:
        assert all(name in text for name in flag.names)
        if flag.metavar is not None:
            assert f"(default: {flag.default_text})" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        parse(["--version"])
    assert leave.value.code == 0
    assert capsys.readouterr().out.startswith("powerinfer-run (powerinfer-py) ")
