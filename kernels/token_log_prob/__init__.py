"""Log-prob of the taken token and entropy, without the logits in memory."""

from kernels.token_log_prob.op import KINDS as KINDS
from kernels.token_log_prob.op import Split as Split
from kernels.token_log_prob.op import choose as choose
from kernels.token_log_prob.op import mask_padding as mask_padding
from kernels.token_log_prob.op import token_log_prob as token_log_prob
