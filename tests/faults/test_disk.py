"""A full disk, folders that nobody may write to, and two processes at once, for every command that writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from faults.conftest import Workshop
from faults.tools import BEFORE, TOOLS, content


def one_line(workshop: Workshop, name: str) -> str:
    """The last line of standard error, which must be the error and no part of a traceback."""
    text = workshop.errors.read_text()
    assert "Traceback" not in text, text
    last = text.splitlines()[-1]
    assert last.startswith(f"powerinfer-{name}: error: "), text
    return last


@pytest.mark.parametrize("name", TOOLS)
def test_a_full_disk(name: str, workshop: Workshop, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for it: no file may grow beyond a kilobyte."""
    tool, whole = TOOLS[name], workshop.whole(name)
    output = tmp_path / "output"
    if not tool.is_folder:
        output.write_bytes(BEFORE)
    assert workshop.zygote.call(workshop.run(name, output, file_limit=1024)) == 1
    assert "File too large" in one_line(workshop, name)
    assert not [*tmp_path.rglob(".powerinfer-*")]
    if tool.is_folder:
        tool.check(output, whole.output)
    else:
        assert output.read_bytes() == BEFORE
        output.unlink()
    assert workshop.zygote.call(workshop.run(name, output)) == 0, workshop.errors.read_text()
    assert content(output) == content(whole.output)


@pytest.mark.parametrize("name", TOOLS)
def test_a_read_only_folder(name: str, workshop: Workshop, tmp_path: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o555)
    assert workshop.zygote.call(workshop.run(name, shut / "output", unprivileged=True)) == 1
    assert "Permission denied" in one_line(workshop, name)
    assert not [*shut.iterdir()]


@pytest.mark.parametrize("name", TOOLS)
def test_a_file_where_a_folder_belongs(name: str, workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(BEFORE)
    assert workshop.zygote.call(workshop.run(name, tmp_path / "file" / "output")) == 1
    assert "Not a directory" in one_line(workshop, name)
    assert (tmp_path / "file").read_bytes() == BEFORE


@pytest.mark.parametrize("name", TOOLS)
def test_two_at_once(name: str, workshop: Workshop, tmp_path: Path) -> None:
    """Each ends well or says in one line that the other is at work; what is there is whole and what any run makes."""
    tool, whole = TOOLS[name], workshop.whole(name)
    output = tmp_path / "output"
    run = workshop.run(name, output)
    pids = [workshop.zygote.start(run) for _ in range(2)]
    codes = [workshop.zygote.wait(pid) for pid in pids]
    assert 0 in codes, workshop.errors.read_text()
    if 1 in codes:
        # Both write to one stream, in whatever order.
        text = workshop.errors.read_text()
        assert "Traceback" not in text
        errors = re.findall(f"powerinfer-{name}: error: .*", text)
        assert len(errors) == 1, text
        assert "another process" in errors[0]
    tool.check(output, whole.output)
    assert content(output) == content(whole.output)
    assert not [*tmp_path.rglob(".powerinfer-*")]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
