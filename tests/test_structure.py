"""The cut of the package: imports point one way, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "powerinfer_py"
# Lower ranks know nothing of higher ones; parts of one rank do not know each other.
RANKS = [
    {"errors", "config", "env"},
    {"gguf", "tensor_files", "output_files"},
    {"tokenizer", "convert", "placement"},
    {"kernels"},
    {"models"},
    {"runtime"},
    {"generation"},
    {"profiler", "predictor"},
    {"cli", "server"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# Within the lowest rank the options raise the errors, and the environment's values are checked like options; temporary
# files of all writers are told apart by one rule.
ALLOWED_BESIDE = {("config", "errors"), ("env", "errors"), ("tensor_files", "gguf"), ("output_files", "gguf")}


def imports(path: Path) -> Iterator[str]:
    """First component below `powerinfer_py` of everything a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            own = node.module == "powerinfer_py"
            names = [f"powerinfer_py.{alias.name}" for alias in node.names] if own else [node.module]
        for name in names:
            parts = name.split(".")
            if parts[0] == "powerinfer_py" and len(parts) > 1:
                yield parts[1]


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for imported in imports(path):
            if imported in ("__version__", part) or (part, imported) in ALLOWED_BESIDE:
                continue
            if imported == "_native":
                if part != "kernels":
                    wrong.append(f"{path.name} imports _native")
            elif RANK[imported] >= RANK[part]:
                wrong.append(f"{path.relative_to(ROOT)} imports {imported}")
    assert not wrong


def test_every_part_has_a_rank() -> None:
    parts = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    # Sources of the native part, and a model: nothing in these is imported.
    assert parts - {"__init__", "__pycache__", "csrc", "models_data"} <= set(RANK)
    assert not list((PACKAGE / "models_data").rglob("*.py"))


def test_only_env_reads_the_environment() -> None:
    readers = [p for p in PACKAGE.rglob("*.py") if "os.environ" in p.read_text() or "os.getenv" in p.read_text()]
    assert [path.name for path in readers] == ["env.py"]


def test_workbench_folders_are_no_packages() -> None:
    for folder in ("predictors", "profiling", "tools"):
        assert (ROOT / folder / "README.md").is_file()
        assert not list((ROOT / folder).rglob("__init__.py"))
        for script in (ROOT / folder).glob("*.py"):
            assert script.stem not in sys.stdlib_module_names
            assert "_" in script.stem, "scripts are named verb_object"


def test_package_never_imports_the_workbench() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("predictors", "profiling", "tools", "tests")


def test_import_is_cheap() -> None:
    """Without torch, and in well under 0.3 s; the best of five, since other processes share the machine."""
    code = (
        "import time; t = time.perf_counter(); import powerinfer_py; powerinfer_py.SamplingParams;"
        "e = time.perf_counter() - t; import sys; print(e, 'torch' in sys.modules)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    outputs = [run.stdout.split() for run in runs]
    assert all(has_torch == "False" for _, has_torch in outputs)
    assert min(float(seconds) for seconds, _ in outputs) < 0.3
