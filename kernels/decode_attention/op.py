"""Dispatch of decode attention; the only file others import.

One implementation so far: `xla` (the reference).
"""

from kernels.decode_attention.reference import (
  decode_attention as decode_attention,
)
