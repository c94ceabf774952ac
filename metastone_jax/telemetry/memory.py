"""Compiled programs that a long process has to let go of.

XLA's CPU keeps three to six memory maps for a compiled program for as long as
one of JAX's caches knows it, and Linux gives a process `vm.max_map_count` of
them, 65,530 by default. Past that the next compile ends the process with a
segmentation fault (`compilation_cache.put_executable_and_time`, jax 0.10), so
whoever compiles without end, a sweep of many points or a run of many tests,
calls `bound_programs` between two pieces of its work.
"""

import pathlib
import sys

# A quarter of Linux's default: one piece of work may take as many again.
MOST_MAPS = 16_000
_MAPS = pathlib.Path('/proc/self/maps')


def memory_maps() -> int:
  """Memory maps of this process; 0 where the system does not say."""
  try:
    return _MAPS.read_bytes().count(b'\n')
  except OSError:  # not Linux
    return 0


def bound_programs(most: int = MOST_MAPS) -> bool:
  """Drops every compiled program if this process has more maps than `most`.

  What is called again is compiled again, or read from the compilation cache.

  Returns:
    Whether they were dropped.
  """
  if memory_maps() <= most:
    return False
  jax = sys.modules.get('jax')
  if jax is None:
    return False
  jax.clear_caches()
  return True
