"""Measuring (and later training) the low-rank predictors; their arithmetic lives in `kernels`."""
