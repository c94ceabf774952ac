"""One new token against a shared prompt cache and the row's own cache."""

from kernels.decode_attention.op import decode_attention as decode_attention
