"""One new token against a shared prompt cache and the slot's own cache."""

from kernels.decode_attention.op import KINDS as KINDS
from kernels.decode_attention.op import Split as Split
from kernels.decode_attention.op import choose as choose
from kernels.decode_attention.op import decode_attention as decode_attention
