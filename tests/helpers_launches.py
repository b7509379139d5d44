"""What Triton would have to compile, noted from launches that are not made: kernels, constants, special arguments."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Compilation = tuple[Any, ...]


@dataclass
class Launches:
    """Takes the place of `launch.run`; `compiled` is what was launched since it was last replaced."""

    compiled: set[Compilation] = field(default_factory=set)

    def run(
        self, kernel: Any, grid: tuple[int, ...], *, warps: int, stages: int = 1, fusion: bool = True, **arguments: Any
    ) -> None:
        if 0 in grid:
            return
        options = getattr(kernel, "kwargs", None) or {"do_not_specialize": kernel.do_not_specialize}
        general = options.get("do_not_specialize") or []
        parameters = inspect.signature(kernel.fn).parameters
        assert set(arguments) == set(parameters)
        described = tuple(
            describe(arguments[name], "constexpr" in str(parameter.annotation), name in general)
            for name, parameter in parameters.items()
        )
        self.compiled.add((kernel.fn.__name__, *zip(parameters, described, strict=True), warps, stages, fusion))


def describe(value: Any, constant: bool, general: bool) -> Any:
    """What of an argument goes into the key of Triton's cache."""
    if constant:
        return value
    if isinstance(value, Tensor):
        return str(value.dtype), not general and value.data_ptr() % 16 == 0
    if isinstance(value, float):
        return "fp32"
    width = "i32" if -(2**31) <= value < 2**31 else "i64"
    if general:
        return width
    return 1 if value == 1 else (width, value % 16 == 0)
