"""Every test of a kernel runs under Triton's interpreter where there is no GPU, and on the GPU where there is one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from helpers_triton import Poison

from powerinfer_py.kernels.reference import ReferenceKernels
from powerinfer_py.kernels.triton import launch
from powerinfer_py.kernels.triton.kernels import TritonKernels

HAS_GPU = torch.cuda.is_available()


@pytest.fixture(
    scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["interpreted", "gpu"]
)
def triton_kernels(request: pytest.FixtureRequest) -> TritonKernels:
    if request.param == "cuda" and not HAS_GPU:
        pytest.skip("needs a CUDA device")
    if request.param == "cpu" and HAS_GPU:
        pytest.skip("this process compiles for the GPU; CUDA_VISIBLE_DEVICES= runs the interpreter")
    # Tensors say "cuda:0" where a device may be "cuda".
    device = torch.empty(0, device=request.param).device
    poison = Poison(request.param)
    return TritonKernels(device, poison)


@pytest.fixture(scope="session")
def reference() -> ReferenceKernels:
    return ReferenceKernels()


@pytest.fixture(autouse=True)
def _numpy_says_nothing_of_nan() -> Iterator[None]:
    """The interpreter computes with numpy, which warns of NaN and overflow that the tests ask for."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        yield


@pytest.fixture
def device_config(monkeypatch: pytest.MonkeyPatch) -> launch.RowConfig:
    """Programs as small as a GPU's: rows and columns that need several of everything."""
    config = launch.RowConfig(rows=4, step=64, warps=4, stages=2, programs=3)
    monkeypatch.setattr(launch, "row_config", lambda *_: config)
    return config
