"""One call of `powerinfer-profile`: run or merge, then report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from powerinfer_py.cli.profile import DEFAULT_BATCH, RECIPE_OPTIONS
from powerinfer_py.cli.profile.output import print_json, print_report, print_timing
from powerinfer_py.cli.progress import byte_progress, step_progress
from powerinfer_py.cli.recipe import read_recipe
from powerinfer_py.cli.streams import remark
from powerinfer_py.config import RuntimeOptions
from powerinfer_py.errors import OptionError, printable
from powerinfer_py.placement.statistics.profile import ActivationProfile, merge_profiles, read_profile
from powerinfer_py.profiler.documents import CALIBRATION_TEXT, open_documents
from powerinfer_py.profiler.folder import ProfileFolder
from powerinfer_py.profiler.plot import draw_profile, require_picture
from powerinfer_py.profiler.run import ProfilePlan, ProfileRun, ProfileTiming, plan_profile

FOLDER_NAME = "activation"


def execute(arguments: argparse.Namespace) -> int:
    """The exit code. Raises PowerInferError."""
    picture = None if arguments.plot is None else Path(arguments.plot)
    if picture is not None:
        # Missing software, a format or a place that cannot be is found out before hours of work.
        require_picture(picture)
    timing = None
    if arguments.merge is not None:
        folder = Path(arguments.output)
        profile = _merge(arguments, folder)
    else:
        folder = _folder(arguments)
        profile, timing = _profile(arguments, folder)
    if picture is not None:
        draw_profile(profile, picture)
    if arguments.json:
        print_json(profile, timing, folder)
    else:
        print_report(profile, folder)
        if timing is not None:
            print_timing(timing)
    return 0


def _merge(arguments: argparse.Namespace, output: Path) -> ActivationProfile:
    if any(_same_folder(Path(source), output) for source in arguments.merge):
        raise OptionError("--merge: the folder to write is one of those to read")
    profile = merge_profiles([read_profile(Path(source)) for source in arguments.merge], same_text=arguments.same_text)
    folder = ProfileFolder(output, overwrite=arguments.overwrite)
    with folder.locked():
        finished = folder.finished(profile.run)
        if finished is None:
            folder.finish(profile)
    return finished or profile


def _profile(arguments: argparse.Namespace, output: Path) -> tuple[ActivationProfile, ProfileTiming]:
    settings = _settings(arguments)
    max_tokens = settings.pop("tokens", None)
    documents = open_documents(arguments.file or [str(CALIBRATION_TEXT)])
    options = RuntimeOptions(threads=arguments.threads, activation=arguments.activation, **settings)
    plan = plan_profile(Path(arguments.model), documents, options, max_tokens=max_tokens)
    run = ProfileRun(plan, ProfileFolder(output, overwrite=arguments.overwrite), tell=remark)
    try:
        profile = _with_bar(run, plan)
    except KeyboardInterrupt:
        remark(f"stopped; what was counted is in {printable(str(output))}, and the same command goes on from there")
        raise
    return profile, run.timing


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """`tokens`, and keywords of `RuntimeOptions`: the command line's, else the recipe's. Raises OptionError."""
    values = {} if arguments.recipe is None else read_recipe(Path(arguments.recipe), RECIPE_OPTIONS)
    given = {name: getattr(arguments, name) for name in RECIPE_OPTIONS}
    values |= {name: value for name, value in given.items() if value is not None}
    if values.get("tokens", 1) < 1:
        raise OptionError(f"the recipe's tokens are {values['tokens']}, expected 1 or more")
    values["context_length"] = values.pop("ctx_size", None)
    values.setdefault("batch_size", DEFAULT_BATCH)
    return values


def _with_bar(run: ProfileRun, plan: ProfilePlan) -> ActivationProfile:
    if plan.max_tokens is not None:
        with step_progress("tokens", plan.max_tokens) as advance:
            return run.execute(lambda n_tokens, _bytes: advance(n_tokens))
    with byte_progress("text", sum(document.n_bytes for document in plan.documents)) as advance:
        return run.execute(lambda _tokens, n_bytes: advance(n_bytes))


def _folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.model).parent / FOLDER_NAME if arguments.output is None else Path(arguments.output)


def _same_folder(a: Path, b: Path) -> bool:
    return a.is_dir() and b.is_dir() and a.samefile(b)
