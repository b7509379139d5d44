"""CPU kernels: `interface` says what there is, `reference` defines it in torch, `cpu` is the fast implementation.

Importing this package is cheap; torch is imported when `make_kernels` makes something.
"""

from powerinfer_py.kernels.selection import fallback_notices, make_kernels, native_extension

__all__ = ["fallback_notices", "make_kernels", "native_extension"]
