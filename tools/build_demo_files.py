"""Makes the model that ships with the package from its parts, and says whether the shipped files are just that.

    python tools/build_demo_files.py                          from the shipped file's own dense half
    python tools/build_demo_files.py --checkpoint DIR         from what tools/train_demo_model.py wrote
    python tools/build_demo_files.py --check                  write nothing, fail where a byte differs

| part | where it comes from |
|---|---|
| dense weights | the training; without --checkpoint they are taken out of the shipped file as they lie there |
| predictors | predictors/demo, in float16 as they are |
| activation statistics | profiling/demo/activation, copied |
| GPU index | solved from those statistics, for rates that are stated and not measured |

What does not lie in the repository is the checkpoint, 12 MB. The last line is one JSON object with the SHA-256 of every
file and those that changed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from powerinfer_py.cli import gpuidx
from powerinfer_py.cli.command import run_command
from powerinfer_py.cli.streams import remark
from powerinfer_py.convert.checkpoint_source import CheckpointOptions, convert_checkpoint
from powerinfer_py.convert.gguf_source import convert_gguf
from powerinfer_py.errors import PowerInferError
from powerinfer_py.output_files import make_folder, write_bytes
from powerinfer_py.predictor.files import sha256

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "powerinfer_py" / "models_data"
PREDICTORS = ROOT / "predictors" / "demo"
STATISTICS = ROOT / "profiling" / "demo" / "activation"
MODEL = "demo.powerinfer.gguf"
INDEX = f"{MODEL}.generated.gpuidx"
OUTTYPE = "q4_0"
# Any budget holds all of a model of 5 MB, and an index with everything on the GPU serves every budget. The rates are
# those of a card of 360 GB/s beside two channels of DDR5; measured ones would differ from day to day.
INDEX_OPTIONS = (
    "--vram-budget",
    "1",
    "--gpu-bandwidth",
    "360",
    "--cpu-bandwidth",
    "60",
    "--sync-time",
    "20",
    "--layer-time",
    "20",
)


def build(folder: Path, checkpoint: Path | None) -> None:
    """Writes all files of the shipped model into `folder`. Raises PowerInferError for a part that is missing."""
    source, kept = SHIPPED / MODEL, folder / "dense"
    if checkpoint is not None:
        convert_checkpoint(checkpoint, None, kept, CheckpointOptions(OUTTYPE))
        source = kept
    convert_gguf(
        source,
        PREDICTORS,
        folder / MODEL,
        outtype=None,
        dense=False,
        activation=None,
        fatrelu_threshold=None,
    )
    kept.unlink(missing_ok=True)
    make_folder(folder / "activation")
    for path in sorted(STATISTICS.glob("activation*")):
        shutil.copyfile(path, folder / "activation" / path.name)
    arguments = ["-m", str(folder / MODEL), "--activation", str(STATISTICS), "-o", str(folder / INDEX)]
    # Its table belongs to those who ask for a split.
    with tempfile.TemporaryFile("w") as unread, redirect_stdout(unread):
        failed = gpuidx.main([*arguments, *INDEX_OPTIONS, "--json"])
    if failed:
        raise PowerInferError("the GPU index could not be solved")


def files_of(folder: Path) -> dict[str, str | None]:
    """The SHA-256 of every file that `build` writes, by name."""
    names = [MODEL, INDEX, *(f"activation/{path.name}" for path in sorted(STATISTICS.glob("activation*")))]
    return {name: sha256(folder / name) for name in names}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="the files of the model that ships with the package")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="take the dense weights from here")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file would change")
    arguments = parser.parse_args(argv)

    def run() -> int:
        with tempfile.TemporaryDirectory(prefix="demo-") as name:
            build(Path(name), arguments.checkpoint)
            before, after = files_of(SHIPPED), files_of(Path(name))
            changed = [file for file, digest in after.items() if before[file] != digest]
            for file in () if arguments.check else changed:
                make_folder((SHIPPED / file).parent)
                write_bytes(SHIPPED / file, (Path(name) / file).read_bytes())
        print(json.dumps({"files": after, "changed": changed}))
        if arguments.check and changed:
            remark(f"the shipped files are not what their parts make: {', '.join(changed)}")
            return 1
        return 0

    return run_command("build_demo_files", run)


if __name__ == "__main__":
    raise SystemExit(main())
