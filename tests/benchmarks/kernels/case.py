"""What is measured: one operator, at one shape, in one form and direction."""

import dataclasses
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class Case:
  """One program of an operator.

  Attributes:
    operator: folder under kernels/.
    shape: words for a table, for example '32b, 4,096 marks'.
    form: 'naive' (the reference), or a kind of its op: 'xla', 'pallas_tpu',
      'pallas_gpu'.
    direction: 'forward' or 'gradient' (forward and backward together).
    function: of the arguments; can be jitted.
    arguments: their shapes.
    flops: arithmetic of the operator itself, nothing computed twice.
    bytes: least traffic of a device's memory: every array once.
    make: arguments with values worth computing on, from a seed; None = normal
      numbers are fine.
  """

  operator: str
  shape: str
  form: str
  direction: str
  function: Callable
  arguments: tuple[jax.ShapeDtypeStruct, ...]
  flops: float
  bytes: float
  make: Callable[[int], tuple] | None = None

  @property
  def platforms(self) -> tuple[str, ...]:
    """Where the form runs without interpretation."""
    return {'pallas_tpu': ('tpu',), 'pallas_gpu': ('cuda', 'gpu')}.get(
      self.form, ('cpu', 'tpu', 'cuda', 'gpu')
    )
