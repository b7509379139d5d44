"""The trainer of the demo model at tiny sizes: texts dealt apart, stops without a trace, files the package reads."""

from __future__ import annotations

import importlib
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from powerinfer_py import LLM
from powerinfer_py.convert.checkpoint_source import CheckpointOptions, convert_checkpoint

TOOLS = Path(__file__).parent.parent.parent / "tools"
SIZES = ["--n-vocab", "320", "--n-ctx", "32", "--n-embd", "32", "--n-layer", "2", "--n-ff", "64", "--gate-rank", "8"]
SMALL = [*SIZES, "--n-head", "2", "--n-head-kv", "1", "--batch", "2"]
NAMES = ["Anne", "Emma", "Jane", "Mary", "Lucy", "Fanny"]
VERBS = ["saw", "liked", "met", "blamed", "heard"]


@pytest.fixture(autouse=True)
def tools_in_reach(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TOOLS))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tool(name: str) -> ModuleType:
    return importlib.import_module(name)


def sentence(random: np.random.Generator) -> str:
    return f"{random.choice(NAMES)} {random.choice(VERBS)} {random.choice(NAMES)}, and was _very_\n  glad of it."


def write_book(path: Path, seed: int, n_chapters: int = 17, heading: str = "CHAPTER {}") -> Path:
    random = np.random.default_rng(seed)
    parts = ["A BOOK", "by Nobody", "VOLUME I"]
    for number in range(n_chapters):
        parts.append(heading.format(number + 1))
        parts += [f"{sentence(random)} {sentence(random)} Number {seed} {number} {k}." for k in range(3)]
    path.write_text("\n\n\n".join(parts) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def books(tmp_path: Path) -> list[Path]:
    return [write_book(tmp_path / f"book{seed}.txt", seed) for seed in (1, 2)]


def command(books: list[Path], out: Path, *more: object) -> list[str]:
    return ["--text", *map(str, books), "--out", str(out), *SMALL, *map(str, more)]


def run(capsys: pytest.CaptureFixture[str], arguments: list[str], script: str = "train_demo_model") -> dict[str, Any]:
    assert tool(script).main(arguments) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def failure(capsys: pytest.CaptureFixture[str], arguments: list[str], script: str = "train_demo_model") -> str:
    assert tool(script).main(arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("step ")]
    assert len(lines) == 1
    return lines[0]


def test_chapters_are_cleaned_and_keep_their_headings() -> None:
    text = "TITLE\n\nby Her\n\nVOLUME I\n\n\nChapter 1\n\nIt _was_  a\nfine  day.\n\n\n"
    text += "She came.\n\nCHAPTER II.\n\nHe left.\n"
    chapters = tool("demo_corpus").split_chapters("book", text)
    assert [chapter.paragraphs for chapter in chapters] == [
        ("Chapter 1", "It was a fine day.", "She came."),
        ("CHAPTER II.", "He left."),
    ]
    assert chapters[0].text == "Chapter 1\n\nIt was a fine day.\n\nShe came.\n"


def test_sets_share_no_chapter_and_lose_none(books: list[Path]) -> None:
    module = tool("demo_corpus")
    corpus = module.read_corpus(books)
    dealt = {name: corpus.of(name) for name in module.SETS}
    assert sum(map(len, dealt.values())) == len(corpus.chapters) == 34
    paragraphs = {name: {p for chapter in own for p in chapter.paragraphs[1:]} for name, own in dealt.items()}
    assert sum(map(len, paragraphs.values())) == len(set().union(*paragraphs.values())) == 34 * 3
    assert [chapter.number for chapter in dealt["held_out"]] == [11, 11]
    assert [chapter.number for chapter in dealt["calibration"]] == [3, 3]
    assert [chapter.number for chapter in dealt["profile"]] == [7, 7]
    # The rule looks at a chapter's number alone: further books move no chapter from one set to another.
    assert module.read_corpus(books[:1]).of("train") == dealt["train"][: len(dealt["train"]) // 2]


def test_the_calibration_text_that_ships_is_kept_from_training() -> None:
    module = tool("demo_corpus")
    shipped = TOOLS.parent / "powerinfer_py" / "profiler" / "calibration" / "persuasion.txt"
    chapters = module.split_chapters("persuasion", shipped.read_text())
    assert len(chapters) == module.SHIPPED_CALIBRATION["persuasion"]
    assert {chapter.set_name for chapter in chapters} == {"calibration"}
    assert module.Chapter("persuasion", len(chapters), ()).set_name == "train"


def test_openings_read_as_the_rest_of_the_chapter(books: list[Path], tmp_path: Path) -> None:
    corpus = tool("demo_corpus").read_corpus(books)
    module = tool("demo_tokenizer")
    module.train_tokenizer(corpus.of("train"), 320, tmp_path / "tokenizer.model")
    tokenizer = module.load_tokenizer(tmp_path / "tokenizer.model")
    assert tokenizer.vocab_size() == 320
    chapters = corpus.of("held_out")
    stream = module.encode_chapters(tokenizer, chapters)
    texts = [chapter.paragraphs[k:] for chapter in chapters for k in range(len(chapter.paragraphs))]
    assert len(texts) == len(stream.openings) == len(stream.resume)
    for paragraphs, opening, resume in zip(texts, stream.openings, stream.resume, strict=True):
        end = int(np.flatnonzero(stream.tokens[resume:] == module.EOS)[0]) + int(resume)
        assert opening[0] == module.BOS
        tokens = [*opening[1:].tolist(), *stream.tokens[resume:end].tolist()]
        assert tokenizer.decode(tokens) == "\n\n".join(paragraphs) + "\n"


def test_a_stopped_run_ends_in_the_same_numbers(
    books: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(capsys, command(books, tmp_path / "whole", "--steps", 8, "--threads", 1))
    assert run(capsys, command(books, tmp_path / "parts", "--steps", 8, "--minutes", 0))["step"] == 0
    for _ in range(20):
        figures = run(capsys, command(books, tmp_path / "parts", "--steps", 8, "--minutes", 0.0005))
        if figures.get("done", True):
            break
    assert figures == whole
    for name in ("model.safetensors", "tokenizer.model", "training.json", "config.json", "held_out.txt"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    record = json.loads((tmp_path / "whole" / "training.json").read_text())
    assert [entry["step"] for entry in record["history"]["validation"]] == [8]


@pytest.mark.parametrize("target", [0.15, 0.7])
def test_training_lowers_the_loss_and_meets_the_target(
    books: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], target: float
) -> None:
    figures = run(capsys, command(books, tmp_path / "out", "--steps", 80, "--target-fired", target))
    history = json.loads((tmp_path / "out" / "training.json").read_text())["history"]["steps"]
    assert figures["perplexity"]["held_out"] < 60 < 320
    assert history[0]["fired"] == pytest.approx(0.5, abs=0.1)
    assert figures["firing"]["fired_share"] == pytest.approx(target, abs=0.1)
    assert figures["firing"]["silent_share"] == pytest.approx(1 - figures["firing"]["fired_share"])
    assert len(figures["firing"]["layers"]) == 2


def test_the_package_computes_the_same_logits(
    books: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    run(capsys, command(books, folder, "--steps", 20))
    model = tool("demo_checkpoint").read_checkpoint(folder)
    tokenizer = tool("demo_tokenizer").load_tokenizer(folder / "tokenizer.model")
    text = "Emma liked Jane, and was very glad of it.\n\nAnne met Lucy."
    convert_checkpoint(folder, None, tmp_path / "demo.gguf", CheckpointOptions())
    with LLM(tmp_path / "demo.gguf", threads=1) as llm:
        tokens = llm.tokenize(text)
        assert tokens == [1, *tokenizer.encode(text)]
        logits = llm.logits(tokens[:32])
    with torch.no_grad():
        expected = model(torch.tensor([tokens[:32]]))[0][0].numpy()
    assert np.square(logits - expected).mean() < 1e-5 * np.square(expected).mean()


def test_firing_figures_of_gates_made_by_hand() -> None:
    model = tool("demo_model").DemoModel(tool("demo_model").DemoShape(16, 4, 8, 1, 2, 1, 10, 8))
    # The norm of a one-hot row is a multiple of it: neuron j fires where column t of its row is above 0.
    with torch.no_grad():
        model.embedding.copy_(torch.eye(8).repeat(2, 1))
        gates = torch.full((10, 8), -1.0)
        gates[0] = 1.0
        gates[1, :2] = 1.0
        model.layers[0].ffn.gate_out.copy_(gates)
        model.layers[0].ffn.gate_in.copy_(torch.eye(8))
    tokens = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0], np.int64)
    stream = tool("demo_tokenizer").TokenStream(tokens, (), np.array([], np.int64), 9)
    counts, n_tokens = tool("demo_evaluation").firing_counts(model, stream)
    assert (n_tokens, counts[0].tolist()) == (8, [8, 2, 0, 0, 0, 0, 0, 0, 0, 0])
    figures = tool("demo_evaluation").firing_figures(model, stream)["layers"][0]
    assert figures["fired_share"] == pytest.approx(10 / 80)
    assert (figures["hot_set_share"], figures["never_fired"]) == (0.1, 8)
    assert figures["captured_by_hottest_fifth"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(3))
def test_longest_copied_run(seed: int) -> None:
    random = np.random.default_rng(seed)
    training, tokens = random.integers(0, 3, 200).tolist(), random.integers(0, 3, 40).tolist()
    tokens[10:22] = training[50:62]
    runs = [tokens[i:j] for i in range(40) for j in range(i + 1, 41)]
    windows = {tuple(training[i : i + n]) for n in range(1, 41) for i in range(201 - n)}
    expected = max(len(part) for part in runs if tuple(part) in windows)
    assert expected >= 12
    assert tool("demo_evaluation").longest_copied_run(tokens, training) == expected
    assert tool("demo_evaluation").longest_copied_run([7, 8], training) == 0


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (24, 24)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(tool("demo_optimizer").orthogonalize(matrices))
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_allowances_fall_and_have_the_mean_asked_for() -> None:
    shares = tool("demo_training").firing_allowances(1024, 0.1)
    assert shares.mean().item() == pytest.approx(0.1, rel=1e-4)
    assert shares.max().item() == pytest.approx(0.9)
    assert (shares.diff() <= 0).all()
    assert shares[99].item() == pytest.approx(2 * shares[199].item())


def test_learning_rate_goes_up_stays_and_falls() -> None:
    settings = tool("demo_training").TrainingSettings(steps=100, warmup=10, decay_share=0.4)
    rates = [settings.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:61]) == {1.0}
    assert rates[61] < 1.0
    assert rates[99] == pytest.approx(1 / 40)


def test_evaluation_of_a_checkpoint(books: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, command(books, tmp_path / "out", "--steps", 10))
    convert_checkpoint(tmp_path / "out", None, tmp_path / "judge.gguf", CheckpointOptions())
    arguments = [str(tmp_path / "out"), "--text", *map(str, books), "--judge", str(tmp_path / "judge.gguf")]
    arguments += ["--count", "2", "--tokens", "10", "--threads", "1", "--samples"]
    first = run(capsys, [*arguments, str(tmp_path / "a.txt")], "evaluate_demo_model")
    assert first == run(capsys, [*arguments, str(tmp_path / "b.txt")], "evaluate_demo_model")
    assert (tmp_path / "a.txt").read_bytes() == (tmp_path / "b.txt").read_bytes()
    assert first["samples"] == len(first["copied_runs"]) == 2
    assert first["ratio"] == pytest.approx(first["judge_on_samples"] / first["judge_on_held_out"])
    assert 1 < first["judge_on_held_out"] < 400
    from_file = [*arguments, str(tmp_path / "file.txt"), "--tokens", "16", "--model", str(tmp_path / "judge.gguf")]
    second = run(capsys, from_file, "evaluate_demo_model")
    assert (second["sampled_from"], first["sampled_from"]) == ("judge.gguf", "out")
    assert second["judge_on_samples"] != first["judge_on_samples"]
    samples = (tmp_path / "file.txt").read_text().split("----")
    assert [text.strip()[:8] for text in samples] == ["The ball", "Mrs. Wes"]


def test_a_signal_ends_a_run_after_its_step(
    books: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, former = tool("demo_training").Trainer, signal.getsignal(signal.SIGTERM)
    advance = trainer.advance

    def interrupted(self: Any) -> dict[str, float]:
        if self.step == 3:
            signal.raise_signal(signal.SIGTERM)
        figures: dict[str, float] = advance(self)
        return figures

    monkeypatch.setattr(trainer, "advance", interrupted)
    assert run(capsys, command(books, tmp_path / "out", "--steps", 10)) == {"step": 4, "steps": 10, "done": False}
    assert signal.getsignal(signal.SIGTERM) == former
    assert (tmp_path / "out" / "state.pt").exists()
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_does_not_fit_is_refused(books: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(capsys, command(books, out, "--steps", 10, "--minutes", 0))
    assert "seed 1, not 2" in failure(capsys, command(books, out, "--steps", 10, "--seed", 2))
    write_book(books[0], 9)
    assert "other texts" in failure(capsys, command(books, out, "--steps", 10))
    (out / "state.pt").write_bytes(b"half of a state")
    assert "not a training state" in failure(capsys, command(books, out, "--steps", 10))
    books[0].write_bytes(b"\xff\xfe")
    assert "not UTF-8" in failure(capsys, command(books, tmp_path / "new"))
    books[0].write_text(" \n\n")
    assert "no words" in failure(capsys, command(books, tmp_path / "new"))
    assert "cannot be read" in failure(capsys, command([tmp_path / "missing.txt"], tmp_path / "new"))
    short = [write_book(tmp_path / "short.txt", 3, n_chapters=11)]
    assert "held_out" in failure(capsys, command(short, tmp_path / "new"))
    assert "no checkpoint" in failure(capsys, [str(tmp_path), "--text", str(books[1])], "evaluate_demo_model")


def test_steps_cannot_change_once_the_rate_falls(books: list[Path], tmp_path: Path) -> None:
    corpus = tool("demo_corpus").read_corpus(books)
    tokenizer_module, training = tool("demo_tokenizer"), tool("demo_training")
    tokenizer_module.train_tokenizer(corpus.of("train"), 320, tmp_path / "tokenizer.model")
    tokenizer = tokenizer_module.load_tokenizer(tmp_path / "tokenizer.model")
    stream = tokenizer_module.encode_chapters(tokenizer, corpus.of("train"))
    shape = tool("demo_model").DemoShape(320, 16, 16, 1, 2, 1, 32, 4)

    def trainer(steps: int) -> Any:
        return training.Trainer(shape, training.TrainingSettings(steps=steps, batch=2), stream, pool)

    with ThreadPoolExecutor(1) as pool:
        first = trainer(10)
        for _ in range(6):
            first.advance()
        first.save(tmp_path / "state.pt", {})
        longer = trainer(20)
        longer.load(tmp_path / "state.pt", {})
        assert longer.step == 6
        first.advance()
        first.save(tmp_path / "state.pt", {})
        trainer(10).load(tmp_path / "state.pt", {})
        with pytest.raises(training.TrainingError, match="the decay has begun"):
            trainer(20).load(tmp_path / "state.pt", {})
