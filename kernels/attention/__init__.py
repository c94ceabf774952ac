"""Causal grouped-query attention over whole sequences (training, prefill)."""

from kernels.attention.op import attention as attention
