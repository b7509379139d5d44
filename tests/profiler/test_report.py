"""Figures and pictures of a profile whose counts are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from powerinfer_py.errors import OptionError, UnsupportedError
from powerinfer_py.placement.statistics.counts import ActivationCounts
from powerinfer_py.placement.statistics.profile import ActivationProfile, ProfiledModel, ProfiledText, ProfileSettings
from powerinfer_py.profiler import plot
from powerinfer_py.profiler.plot import draw_profile, require_matplotlib
from powerinfer_py.profiler.report import POINTS, curve, layer_figures, overall_figures, report_dict


@pytest.fixture
def profile() -> ActivationProfile:
    """Two layers of ten neurons over 100 tokens; layer 1 never fires."""
    fired = np.array([[90, 50, 20, 20, 10, 10, 0, 0, 0, 0], [0] * 10], np.int64)
    predicted = np.array([[100, 60, 0, 0, 0, 0, 0, 0, 40, 0], [0] * 10], np.int64)
    both = np.array([[90, 40, 0, 0, 0, 0, 0, 0, 0, 0], [0] * 10], np.int64)
    model = ProfiledModel("f" * 64, "llama", 2, 8, 10, "relu", 0.0, True, 0.1)
    text = ProfiledText("a" * 64, 500, 100)
    counts = ActivationCounts(fired, predicted, both)
    return ActivationProfile(model, ProfileSettings(64, 64), (text,), counts, 2, "r")


def test_layer_figures(profile: ActivationProfile) -> None:
    first, second = layer_figures(profile)
    assert (first.silent, first.never_fired) == (pytest.approx(0.8), 4)
    assert (first.hot, first.hot_share) == (3, 0.3), "90 + 50 + 20 of 200 are 80 %"
    assert first.captured == (0.0, 0.45, 0.7, 0.8, 0.95)
    assert first.predicted == pytest.approx(0.2)
    assert first.recall == pytest.approx(130 / 200)
    assert first.precision == pytest.approx(130 / 200)
    assert (second.silent, second.never_fired, second.hot) == (1.0, 10, 0)
    assert second.captured == (0.0,) * len(POINTS)
    assert (second.predicted, second.recall, second.precision) == (0.0, None, None)


def test_overall_figures_are_of_one_pool(profile: ActivationProfile) -> None:
    overall = overall_figures(profile)
    assert (overall.layer, overall.neurons, overall.hot, overall.hot_share) == (None, 20, 3, 0.15)
    assert overall.silent == pytest.approx(0.9)


def test_curve(profile: ActivationProfile) -> None:
    values = curve(profile.counts.fired[0])
    assert len(values) == 101
    assert (values[0], values[9], values[10], values[100]) == (0.0, 0.0, 0.45, 1.0)
    assert values == sorted(values)


def test_report_holds_everything_but_the_counts(profile: ActivationProfile) -> None:
    report = report_dict(profile)
    assert report["tokens"] == 100
    assert [layer["hot"] for layer in report["layers"]] == [3, 0]
    assert len(report["curves"]["layers"]) == 2
    bare = dataclasses.replace(profile, counts=ActivationCounts(profile.counts.fired))
    assert all(figures.recall is None for figures in layer_figures(bare))


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
def test_pictures(suffix: str, magic: bytes, profile: ActivationProfile, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    path = tmp_path / f"picture{suffix}"
    draw_profile(profile, path)
    assert path.read_bytes().startswith(magic)
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"\.png, \.svg, \.pdf"):
        require_matplotlib(Path("picture.txt"))
    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    with pytest.raises(UnsupportedError, match=r"powerinfer-py\[plot\]"):
        require_matplotlib(Path("picture.png"))
