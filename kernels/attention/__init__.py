"""Causal grouped-query attention over whole sequences (training, prefill)."""

from kernels.attention.op import KINDS as KINDS
from kernels.attention.op import PLAIN as PLAIN
from kernels.attention.op import Layout as Layout
from kernels.attention.op import Split as Split
from kernels.attention.op import attention as attention
from kernels.attention.op import attention_to_past as attention_to_past
from kernels.attention.op import choose as choose
