"""Kernels for a GPU, written in Triton; `kernels.TritonKernels` offers them as the operations of `kernels.interface`.

Importing this package is cheap and needs no Triton: `availability` says whether the rest can be imported and run. Every
kernel also runs on CPU tensors under Triton's interpreter (`TRITON_INTERPRET=1` before Triton is imported).

What all kernel files keep to: no inline assembly, no libdevice, no program that waits for another of its kernel, and
no atomics but where integers are counted, whose sum is the same in any order. Sums are cut into tiles whose size is
fixed when a kernel is launched and combined in one order, so that a call repeats bit for bit. Neither a number of
tokens nor one of neurons is a constant of a compiled kernel (but for down projections in the order of a dense file),
nor is the place of a mask: a prompt of a new length, or a layer split elsewhere, compiles nothing. Rows that have to be
known to be aligned lie multiples of 16 columns apart, which a constant factor tells a kernel. Grids do not depend on
numbers in device memory: programs that find nothing to do leave early.
"""
