"""Every test that takes `kernels` runs on the reference and on each instruction set this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from powerinfer_py import _native
from powerinfer_py.kernels import make_kernels
from powerinfer_py.kernels.cpu import NativeKernels
from powerinfer_py.kernels.interface import Kernels

ISAS = _native.available_isas()


@pytest.fixture(scope="session", params=["torch", *ISAS])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "torch":
        return make_kernels(1, name="torch")
    return NativeKernels(2, request.param)


@pytest.fixture(scope="session", params=ISAS)
def native(request: pytest.FixtureRequest) -> NativeKernels:
    return NativeKernels(2, request.param)


@pytest.fixture(scope="module", autouse=True)
def _torch_on_one_thread() -> Iterator[None]:
    """Torch's threads busy-wait between its operations and take the cores from the threads under test."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
