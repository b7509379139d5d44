"""The VRAM ledger: a budget, and every device byte that is reserved out of it, by name and layer.

Not the memory itself: who allocates takes bytes out of a reservation here first. Invariant: reserved bytes never exceed
the budget, used bytes never exceed what is reserved, reservation by reservation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from powerinfer_py.errors import DeviceError, OptionError

GIB = 1 << 30
# Left free on a device whose whole free memory may be used: the display and other programs go on allocating.
SAFETY_MARGIN_BYTES = 256 << 20

CONTEXT = "context and modules"
DENSE_WEIGHTS = "dense weights"
PREDICTORS = "predictors"
KV_CACHE = "KV cache"
ACTIVATIONS = "activations"
STAGING = "staging"
HOT_NEURONS = "hot neurons"
HEAD = "head"
# In the order of the table.
NAMES = (CONTEXT, DENSE_WEIGHTS, PREDICTORS, HEAD, KV_CACHE, ACTIVATIONS, STAGING, HOT_NEURONS)


class BudgetError(DeviceError):
    """A budget of device memory is too small for what is asked of it, or larger than the device has or can give."""


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of a device, as its driver reports them before this process uses any."""

    total_bytes: int
    free_bytes: int


def budget_in_bytes(gib: float, memory: Callable[[], DeviceMemory], minimum_bytes: int = 0) -> int:
    """The bytes that `--vram-budget GIB` grants; 0 means that no device is used, and `memory` is then not asked.

    gib: -1 for all that is free less `SAFETY_MARGIN_BYTES`. minimum_bytes: what the model cannot do without.
    Raises OptionError for what is no such number; BudgetError where the device has less in all or free than asked, and
    where the budget is below the minimum, which the message names.
    """
    if isinstance(gib, bool) or not isinstance(gib, (int, float)) or not math.isfinite(gib) or (gib < 0 and gib != -1):
        raise OptionError(f"a VRAM budget is -1 or a number of GiB >= 0, not {gib!r}")
    if gib == 0:
        return 0
    device = memory()
    if gib == -1:
        if device.free_bytes <= SAFETY_MARGIN_BYTES:
            raise BudgetError(
                f"only {gib_text(device.free_bytes)} of the GPU's memory is free, and {gib_text(SAFETY_MARGIN_BYTES)} "
                "of it stay free as a margin: nothing is left to use"
            )
        n_bytes = device.free_bytes - SAFETY_MARGIN_BYTES
    else:
        n_bytes = int(gib * GIB)
        if n_bytes > device.total_bytes:
            raise BudgetError(
                f"a VRAM budget of {gib_text(n_bytes)} was asked for, the GPU has {gib_text(device.total_bytes)}"
            )
        if n_bytes > device.free_bytes:
            raise BudgetError(
                f"a VRAM budget of {gib_text(n_bytes)} was asked for, of which the GPU has only "
                f"{gib_text(device.free_bytes)} free now"
            )
    require_minimum(n_bytes, minimum_bytes)
    return n_bytes


def require_minimum(n_bytes: int, minimum_bytes: int, growth_bytes: int = 0) -> None:
    """Raises BudgetError, naming the minimum, where a budget of `n_bytes` lies below it.

    growth_bytes: what is not measured yet and may come to the minimum; it is in the figure that is named.
    """
    if n_bytes < minimum_bytes:
        unknown = f", kernels that are not loaded yet counted with {gib_text(growth_bytes)}" if growth_bytes else ""
        raise BudgetError(
            f"a VRAM budget of {gib_text(n_bytes)} ({n_bytes} bytes) is too small for this model with this context; "
            f"the minimum is {minimum_text(minimum_bytes + growth_bytes)}, and 0 uses no GPU{unknown}"
        )


def gib_text(n_bytes: int) -> str:
    """Bytes in GiB, as messages show them."""
    return f"{n_bytes / GIB:.2f} GiB" if n_bytes >= GIB // 10 else f"{n_bytes / (1 << 20):.2f} MiB"


def minimum_text(n_bytes: int) -> str:
    """Bytes in GiB so that the figure, given as a budget, is enough."""
    return f"{math.ceil(n_bytes * 10000 / GIB) / 10000:.4f} GiB ({n_bytes} bytes)"


@dataclass(eq=False)
class Reservation:
    """Bytes set aside in a ledger. used_bytes: those that memory was taken for."""

    name: str
    n_bytes: int
    layer: int | None
    used_bytes: int = 0


@dataclass(frozen=True)
class LedgerLine:
    """All reservations of one name."""

    name: str
    reserved_bytes: int
    used_bytes: int


class Ledger:
    """A budget of device bytes. minimum_bytes: named in the error of a reservation that does not fit, where known."""

    def __init__(self, budget_bytes: int, minimum_bytes: int | None = None) -> None:
        if budget_bytes < 0:
            raise ValueError(f"a budget of {budget_bytes} bytes")
        self.budget_bytes = budget_bytes
        self.minimum_bytes = minimum_bytes
        self._reservations: list[Reservation] = []

    def reserve(self, name: str, n_bytes: int, layer: int | None = None) -> Reservation:
        """Sets bytes aside. Raises BudgetError where the budget has not that many left; nothing changes then."""
        if n_bytes < 0:
            raise ValueError(f"{name}: {n_bytes} bytes")
        if n_bytes > self.free_bytes:
            place = "" if layer is None else f" of layer {layer}"
            minimum = "" if self.minimum_bytes is None else f"; the minimum is {minimum_text(self.minimum_bytes)}"
            raise BudgetError(
                f"{name}{place} needs {n_bytes} bytes of GPU memory, and {self.free_bytes} are left of the budget of "
                f"{self.budget_bytes}{minimum}"
            )
        reservation = Reservation(name, n_bytes, layer)
        self._reservations.append(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """Gives a reservation back, all memory of which must have been given back before."""
        if reservation.used_bytes:
            raise ValueError(f"{reservation.name}: {reservation.used_bytes} bytes are still in use")
        self._reservations.remove(reservation)

    def take(self, reservation: Reservation, n_bytes: int) -> None:
        """Notes that memory was taken out of a reservation. Raises BudgetError beyond its size."""
        left = reservation.n_bytes - reservation.used_bytes
        if reservation not in self._reservations or not 0 <= n_bytes <= left:
            raise BudgetError(f"{n_bytes} bytes of GPU memory for {reservation.name}, {left} are reserved for it")
        reservation.used_bytes += n_bytes

    def give_back(self, reservation: Reservation, n_bytes: int) -> None:
        """Notes that memory taken out of a reservation is free again; it stays reserved."""
        if reservation not in self._reservations or not 0 <= n_bytes <= reservation.used_bytes:
            raise ValueError(f"{reservation.name}: {n_bytes} bytes given back of {reservation.used_bytes}")
        reservation.used_bytes -= n_bytes

    @property
    def reserved_bytes(self) -> int:
        """Sum over all reservations."""
        return sum(reservation.n_bytes for reservation in self._reservations)

    @property
    def used_bytes(self) -> int:
        """Bytes that memory was taken for."""
        return sum(reservation.used_bytes for reservation in self._reservations)

    @property
    def free_bytes(self) -> int:
        """Bytes of the budget that nothing is reserved for."""
        return self.budget_bytes - self.reserved_bytes

    def table(self) -> list[LedgerLine]:
        """A line a name: those of `NAMES` in their order, then others; names without a reservation are left out."""
        order = {name: place for place, name in enumerate(NAMES)}
        names = sorted({r.name for r in self._reservations}, key=lambda name: (order.get(name, len(order)), name))
        return [self._line(name) for name in names]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: budget, reserved, used and free bytes, and the same for each name."""
        return {
            "budget_bytes": self.budget_bytes,
            "reserved_bytes": self.reserved_bytes,
            "used_bytes": self.used_bytes,
            "free_bytes": self.free_bytes,
            "names": {
                line.name: {"reserved_bytes": line.reserved_bytes, "used_bytes": line.used_bytes}
                for line in self.table()
            },
        }

    def _line(self, name: str) -> LedgerLine:
        named = [reservation for reservation in self._reservations if reservation.name == name]
        return LedgerLine(name, sum(r.n_bytes for r in named), sum(r.used_bytes for r in named))
