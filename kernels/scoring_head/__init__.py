"""The SPRM score head: Linear -> ReLU -> Dropout -> Linear, one logit."""

from kernels.scoring_head.op import KINDS as KINDS
from kernels.scoring_head.op import Split as Split
from kernels.scoring_head.op import choose as choose
from kernels.scoring_head.op import scoring_head as scoring_head
from kernels.scoring_head.op import step_scores as step_scores
