"""Runs every hostile file and writes what came of them: `python tests/hostile/write_table.py`.

Writes docs/results/hostile_files.json and the table in docs/reliability.md. The exit code is 1, and nothing is written,
where a case came to anything else than it must.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])
sys.path.append(str(Path(__file__).parents[2] / "tools"))


def main() -> int:
    """Runs, judges, writes."""
    from hostile.running import MAX_BYTES, MAX_S, run_cases
    from hostile.table import DOCUMENT, RESULTS, as_json, figures, with_table
    from result_header import header

    head = header("tests/hostile/write_table.py", None)
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run_cases(Path(folder))
    wrong = [o for o in outcomes if o.error != o.case.error or o.seconds >= MAX_S or o.bytes >= MAX_BYTES]
    for outcome in wrong:
        print(f"{outcome.case.id}: expected {outcome.case.error}, got {outcome.error}: {outcome.message}")
    if wrong:
        return 1
    values = {**head, **figures(outcomes)}
    RESULTS.write_text(as_json(values, outcomes), encoding="utf-8")
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), values), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
