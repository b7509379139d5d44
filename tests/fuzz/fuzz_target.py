"""Coverage-guided fuzzing by atheris: `python tests/fuzz/fuzz_target.py TARGET [libFuzzer option...]`.

TARGET is a key of `targets.TARGETS`. Begins from tests/fuzz/corpus/TARGET and from the hostile cases of its kind; what
it finds on the way is kept in build/fuzz/TARGET. An input that ends in an undocumented exception is written there as
crash-...: put it into the corpus, where a test reads it for ever, and mend the reader. `make fuzz` runs each a while.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_BYTES = 1 << 14
CASES = {"reader": ("gguf_cases",), "tokenizer": ("vocabulary_cases",), "gpuidx": ("gpuidx_cases",)}


def seeds(name: str, folder: Path) -> Path:
    """The small files among the hostile cases."""
    from importlib import import_module

    for module in CASES[name]:
        for number, case in enumerate(import_module(f"hostile.{module}").CASES):
            if case.reader in ("gguf", "tokenizer", "gpuidx"):
                own = folder / f"{module}-{number}"
                own.mkdir()
                data = case.build(own).read_bytes()
                if len(data) <= MAX_BYTES:
                    (folder / f"{module}-{number}.bin").write_bytes(data)
    return folder


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    name, *options = sys.argv[1:]
    # The finder of an editable installation loads modules in a way that atheris cannot instrument: it saw no coverage.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
    sys.path[:1] = [str(ROOT / "tests"), str(ROOT)]
    with atheris.instrument_imports(include=["powerinfer_py"]):
        from fuzz.targets import CORPUS, TARGETS
    found = ROOT / "build" / "fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="powerinfer-seeds-")
    limits = [f"-max_len={MAX_BYTES}", "-timeout=5", "-rss_limit_mb=2048", f"-artifact_prefix={found}/"]
    atheris.Setup(
        [sys.argv[0], *limits, *options, str(found), str(CORPUS / name), str(seeds(name, Path(folder)))], TARGETS[name]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
