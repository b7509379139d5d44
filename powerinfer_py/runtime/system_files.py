"""What Linux says of this process in files below `/proc` and `/sys`: numbers, and the control groups it is in.

It knows no meaning of a group's files: whoever asks for a limit reads them. Where a system has no such files (not
Linux, or hidden by a sandbox) there are no groups and no numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class ControlGroups:
    """Folders of the groups that a process is in and of those above them, each of which limits it.

    unified: of version 2, whose one tree serves all controllers. separate: of version 1, the tree of one controller.
    Any of them may be missing, or lack the files of a controller.
    """

    unified: tuple[Path, ...]
    separate: tuple[Path, ...]


def control_groups(controller: str, root: Path = Path("/")) -> ControlGroups:
    """The groups of this process under a controller, `cpu` or `memory`. root: where `proc` and `sys` hang."""
    unified: list[Path] = []
    separate: list[Path] = []
    mount = root / "sys/fs/cgroup"
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            unified += _with_those_above(mount, path)
        elif controller in controllers.split(","):
            for name in dict.fromkeys((controller, controllers)):
                separate += _with_those_above(mount / name, path)
    return ControlGroups(tuple(unified), tuple(separate))


def read_text(path: Path) -> str | None:
    """The text of a file without white space around it, None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return None


def as_integer(text: str | None) -> int | None:
    """The number that a text is, None where it is none."""
    try:
        return int(text or "")
    except ValueError:
        return None


def _with_those_above(mount: Path, path: str) -> list[Path]:
    """A group's folder and those above it. In a container the path may be the host's, of which only the top exists."""
    inner = PurePosixPath(path.lstrip("/"))
    return [mount / group for group in (inner, *inner.parents) if ".." not in group.parts]
