"""Every hostile file is refused by one documented exception, in under a second and under 64 MB; honest ones are not."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hostile.all_cases import CASES
from hostile.case import HostileCase
from hostile.running import MAX_BYTES, MAX_S, Outcome, run_cases
from hostile.table import DOCUMENT, RESULTS, in_document, table

from powerinfer_py import errors
from powerinfer_py.placement.gpuidx import GpuIndexError

DOCUMENTED = vars(errors) | {"GpuIndexError": GpuIndexError}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {outcome.case.id: outcome for outcome in run_cases(tmp_path_factory.mktemp("hostile"))}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_as_the_checklist_says(case: HostileCase, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[case.id]
    assert outcome.error == case.error, outcome.message
    assert re.search(case.match, outcome.message), outcome.message
    assert outcome.seconds < MAX_S
    assert outcome.bytes < MAX_BYTES
    assert outcome.message.isprintable() or not outcome.message
    assert len(outcome.message) < 600
    if case.has_place:
        assert outcome.place is not None
        assert outcome.place >= 0


def test_nothing_was_executed(outcomes: dict[str, Outcome]) -> None:
    assert any("code in the pickle" in name for name in outcomes)
    assert not Path("executed").exists()


def test_cases_have_their_own_names_and_documented_errors() -> None:
    counts = Counter(case.id for case in CASES)
    assert [name for name, count in counts.items() if count > 1] == []
    for case in CASES:
        assert case.error is None or issubclass(DOCUMENTED[case.error], errors.PowerInferError)


def test_the_document_shows_a_run_of_these_cases() -> None:
    """`python tests/hostile/write_table.py` writes both after a case was added."""
    values = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert {clause: row["cases"] for clause, row in values["clauses"].items()} == Counter(c.clause for c in CASES)
    assert values["cases"] == len(CASES) >= 150
    assert values["accepted_wrongly"] == values["refused_wrongly"] == values["crashes"] == 0
    assert set(values["samples"]) == {case.id for case in CASES}
    assert values["worst_bytes"] == max(sample["bytes"] for sample in values["samples"].values()) < MAX_BYTES
    assert values["worst_seconds"] < MAX_S
    assert in_document(DOCUMENT.read_text(encoding="utf-8")) == table(values)
