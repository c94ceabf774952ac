"""What the policy objective is: one frozen config, and the named presets.

| preset    | ratio    | clip        | aggregation        | std | KL, entropy |
| --------- | -------- | ----------- | ------------------ | --- | ----------- |
| grpo()    | token    | 0.2 / 0.2   | token              | yes | 1e-3, 1e-3  |
| dr_grpo() | token    | 0.2 / 0.2   | sequence_sum_fixed | no  | 0, 0        |
| dapo()    | token    | 0.2 / 0.28  | token              | yes | 0, 0        |
| gspo()    | sequence | 3e-4 / 4e-4 | sequence           | yes | 0, 0        |

grpo() is the released code's (SPEC section 4). Dr. GRPO: arXiv 2503.20783;
DAPO: arXiv 2503.14476, of which dynamic sampling and overlong shaping are the
loop's (`zero_variance_groups`, `overlong_penalty_B`); GSPO: arXiv 2507.18071.
"""

import dataclasses
import math

from metastone_jax.errors import UserError, check_fields
from metastone_jax.policy.aggregation import AGGREGATIONS
from metastone_jax.policy.kl import KL_FORMS

RATIOS = ('token', 'sequence')


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """The policy objective; hashable, so it may be a static argument of jit."""

  clip_low: float = 0.2  # the ratio is clipped to [1 - clip_low, ...
  clip_high: float = 0.2  # ... 1 + clip_high]
  dual_clip: float | None = None  # > 1: the loss of A < 0 is at most this * -A
  ratio: str = 'token'  # 'token' (PPO) or 'sequence' (GSPO: geometric mean)
  aggregation: str = 'token'  # see aggregation.py; KL and entropy follow it
  fixed_length: int | None = None  # tokens; for 'sequence_sum_fixed'
  normalise_std: bool = True  # divide the advantage by the group's std
  kl_form: str = 'k3'  # 'k1', 'k2' or 'k3', see kl.py
  kl_coefficient: float = 1e-3  # weight of the KL; 0: no reference needed
  entropy_coefficient: float = 1e-3  # weight of the entropy bonus
  # Cap of the weight exp(old - sampler log-prob) of each token (truncated
  # importance sampling); None: no such weight.
  importance_truncation: float | None = None

  def __post_init__(self):
    for name, allowed in (
      ('ratio', RATIOS),
      ('aggregation', AGGREGATIONS),
      ('kl_form', KL_FORMS),
    ):
      if getattr(self, name) not in allowed:
        raise UserError(
          f'objective {name} must be one of {", ".join(allowed)}: '
          f'got {getattr(self, name)!r}'
        )
    # The conditions are written so that nan fails them.
    check_fields(
      'objective ',
      self,
      (
        ('clip_low', 0 <= self.clip_low <= 1, 'between 0 and 1'),
        ('clip_high', self.clip_high >= 0, 'at least 0'),
        ('kl_coefficient', self.kl_coefficient >= 0, 'at least 0'),
        (
          'entropy_coefficient',
          math.isfinite(self.entropy_coefficient),
          'a finite number',
        ),
        ('dual_clip', self.dual_clip is None or self.dual_clip > 1, 'above 1'),
        (
          'importance_truncation',
          self.importance_truncation is None or self.importance_truncation > 0,
          'above 0',
        ),
        (
          'fixed_length',
          self.fixed_length is None or self.fixed_length >= 1,
          'at least 1 token',
        ),
      ),
    )


def grpo(**overrides) -> ObjectiveConfig:
  """GRPO as the released MetaStone-S1 code runs it."""
  return ObjectiveConfig(**overrides)


def dr_grpo(**overrides) -> ObjectiveConfig:
  """Dr. GRPO: no length and no std normalisation. Pass `fixed_length`."""
  return ObjectiveConfig(
    **{
      'aggregation': 'sequence_sum_fixed',
      'normalise_std': False,
      'kl_coefficient': 0.0,
      'entropy_coefficient': 0.0,
    }
    | overrides
  )


def dapo(**overrides) -> ObjectiveConfig:
  """DAPO: clip-higher, token mean, no KL."""
  return ObjectiveConfig(
    **{'clip_high': 0.28, 'kl_coefficient': 0.0, 'entropy_coefficient': 0.0}
    | overrides
  )


def gspo(**overrides) -> ObjectiveConfig:
  """GSPO: one length-normalised ratio a sequence, and its narrow clip."""
  return ObjectiveConfig(
    **{
      'ratio': 'sequence',
      'aggregation': 'sequence',
      'clip_low': 3e-4,
      'clip_high': 4e-4,
      'kl_coefficient': 0.0,
      'entropy_coefficient': 0.0,
    }
    | overrides
  )


PRESETS = {'grpo': grpo, 'dr_grpo': dr_grpo, 'dapo': dapo, 'gspo': gspo}
