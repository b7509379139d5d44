"""CPU kernels: `interface` says what there is, `reference` defines it in torch, `cpu` is the fast implementation.

Importing this package is cheap; torch is imported when `make_kernels` makes something.
"""

from powerinfer_py.kernels.selection import make_kernels

__all__ = ["make_kernels"]
