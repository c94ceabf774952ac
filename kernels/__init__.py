"""Operators, one folder each: `kernels/<op>/`.

A folder holds `reference.py` (plain `jax.numpy`: the meaning of the operator),
`xla.py` (chunked, bounded in memory), Pallas versions where they pay off, and
`op.py`, which chooses one and carries the custom gradient. Code outside the
folder imports `op.py` only. Everything here depends on jax alone.

`__version__` is this project's version and must be defined here: `kernels` is
also the name of a package on PyPI that transformers looks for, and some
versions of transformers fail on import when they find a `kernels` that has no
version. Keep it below the lowest version that transformers accepts, or
transformers would take this package for the other one.
"""

__version__ = '0.1.0'  # equal to metastone_jax.__version__ (tested)
