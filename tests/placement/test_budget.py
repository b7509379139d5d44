"""The ledger, and what a budget must be."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from powerinfer_py.errors import DeviceError, OptionError
from powerinfer_py.placement.budget import (
    GIB,
    HOT_NEURONS,
    KV_CACHE,
    SAFETY_MARGIN_BYTES,
    BudgetError,
    DeviceMemory,
    Ledger,
    Reservation,
    budget_in_bytes,
)

DEVICE = DeviceMemory(total_bytes=8 * GIB, free_bytes=6 * GIB)


def device() -> DeviceMemory:
    return DEVICE


def untouched() -> DeviceMemory:
    raise AssertionError("a budget of 0 asks no device")


def test_a_budget_of_0_asks_no_device_and_has_no_minimum() -> None:
    assert budget_in_bytes(0, untouched, minimum_bytes=GIB) == 0
    assert budget_in_bytes(-0.0, untouched) == 0


def test_minus_1_is_all_that_is_free_less_the_margin() -> None:
    assert budget_in_bytes(-1, device) == 6 * GIB - SAFETY_MARGIN_BYTES


@pytest.mark.parametrize("free", [0, 1, SAFETY_MARGIN_BYTES - 1, SAFETY_MARGIN_BYTES])
def test_free_memory_below_the_margin_is_refused(free: int) -> None:
    with pytest.raises(BudgetError, match="nothing is left"):
        budget_in_bytes(-1, lambda: DeviceMemory(8 * GIB, free))


@pytest.mark.parametrize("gib", [-2, -0.5, float("nan"), float("inf"), float("-inf"), "8GB", "8", None, True])
def test_what_is_no_number_of_gib_is_refused(gib: Any) -> None:
    with pytest.raises(OptionError, match="-1 or a number of GiB >= 0"):
        budget_in_bytes(gib, untouched)


def test_more_than_the_device_has_or_can_give_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"8\.50 GiB was asked for, the GPU has 8\.00 GiB"):
        budget_in_bytes(8.5, device)
    with pytest.raises(BudgetError, match=r"7\.00 GiB was asked for, of which the GPU has only 6\.00 GiB free now"):
        budget_in_bytes(7, device)
    assert budget_in_bytes(6, device) == 6 * GIB


def test_the_minimum_is_named_and_is_enough() -> None:
    minimum = GIB + 12345
    assert budget_in_bytes(minimum / GIB, device, minimum) == minimum
    with pytest.raises(BudgetError) as caught:
        budget_in_bytes((minimum - 1) / GIB, device, minimum)
    assert f"{minimum} bytes" in str(caught.value)
    named = re.search(r"the minimum is ([0-9.]+) GiB", str(caught.value))
    assert named is not None
    assert budget_in_bytes(float(named[1]), device, minimum) >= minimum


def test_minus_1_below_the_minimum_names_the_minimum() -> None:
    with pytest.raises(BudgetError, match="the minimum is 7"):
        budget_in_bytes(-1, device, 7 * GIB)


def test_reservations_fill_a_budget_to_the_byte() -> None:
    ledger = Ledger(1000, minimum_bytes=900)
    cache = ledger.reserve(KV_CACHE, 600, layer=3)
    ledger.reserve(HOT_NEURONS, 400)
    assert (ledger.reserved_bytes, ledger.free_bytes) == (1000, 0)
    with pytest.raises(BudgetError, match=r"KV cache of layer 4 needs 1 bytes .* 0 are left of .* 1000; the minimum"):
        ledger.reserve(KV_CACHE, 1, layer=4)
    assert ledger.reserved_bytes == 1000
    ledger.release(cache)
    assert ledger.free_bytes == 600


def test_a_budget_error_is_a_device_error() -> None:
    assert issubclass(BudgetError, DeviceError)


def test_memory_is_taken_out_of_reservations() -> None:
    ledger = Ledger(1000)
    cache = ledger.reserve(KV_CACHE, 600)
    ledger.take(cache, 600)
    with pytest.raises(BudgetError, match="1 bytes of GPU memory for KV cache, 0 are reserved"):
        ledger.take(cache, 1)
    with pytest.raises(ValueError, match="still in use"):
        ledger.release(cache)
    ledger.give_back(cache, 600)
    with pytest.raises(ValueError, match="given back"):
        ledger.give_back(cache, 1)
    ledger.release(cache)
    with pytest.raises(BudgetError):
        ledger.take(cache, 0)
    assert ledger.used_bytes == ledger.reserved_bytes == 0


def test_the_table_is_ordered_and_adds_up() -> None:
    ledger = Ledger(1000)
    ledger.reserve("something else", 1)
    ledger.take(ledger.reserve(HOT_NEURONS, 10, layer=0), 7)
    ledger.reserve(KV_CACHE, 100, layer=0)
    ledger.reserve(HOT_NEURONS, 20, layer=1)
    assert [line.name for line in ledger.table()] == [KV_CACHE, HOT_NEURONS, "something else"]
    assert ledger.to_dict() == {
        "budget_bytes": 1000,
        "reserved_bytes": 131,
        "used_bytes": 7,
        "free_bytes": 869,
        "names": {
            KV_CACHE: {"reserved_bytes": 100, "used_bytes": 0},
            HOT_NEURONS: {"reserved_bytes": 30, "used_bytes": 7},
            "something else": {"reserved_bytes": 1, "used_bytes": 0},
        },
    }


def test_no_sequence_of_calls_exceeds_the_budget() -> None:
    rng = random.Random(0)
    ledger = Ledger(10_000)
    held: list[Reservation] = []
    refused = 0
    for _ in range(3000):
        if held and rng.random() < 0.45:
            reservation = held.pop(rng.randrange(len(held)))
            ledger.give_back(reservation, reservation.used_bytes)
            ledger.release(reservation)
            continue
        n_bytes = rng.randrange(3000)
        free = ledger.free_bytes
        try:
            reservation = ledger.reserve(HOT_NEURONS, n_bytes)
        except BudgetError:
            refused += 1
            assert n_bytes > free
            continue
        ledger.take(reservation, rng.randrange(n_bytes + 1))
        held.append(reservation)
        assert ledger.reserved_bytes == sum(r.n_bytes for r in held) <= 10_000
        assert ledger.used_bytes == sum(r.used_bytes for r in held)
    assert refused > 100


def test_negative_bytes_are_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="a budget of -1 bytes"):
        Ledger(-1)
    ledger = Ledger(100)
    with pytest.raises(ValueError, match="staging: -1 bytes"):
        ledger.reserve("staging", -1)
    assert ledger.free_bytes == 100
