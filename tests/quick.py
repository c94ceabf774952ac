"""`jax.jit` for programs that run a handful of times on tiny arrays.

Unoptimised machine code halves the compile time, of which such a test mostly
consists. Everything before the machine code (sharding, fusion, donation) is
unchanged.
"""

import functools

import jax

jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
