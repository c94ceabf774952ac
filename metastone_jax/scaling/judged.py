"""What one judge said of the held-out samples of a seed, and what it cost.

Contract: the judges ("arms") of a seed judge the SAME P x N samples, so two of
them compare in pairs. An arm's folder has `judged.npz` (`Judged`, no pickles)
and `about.json` (`About`); both appear whole or not at all, `about.json` last.
A judge with a score head gives logits of steps, from which every aggregator
follows; one without (self-certainty, mean log-prob) gives one value a trace, of
which only the order counts.
"""

# ruff: noqa: N802, N815 (shapes in names carry capitals)

import dataclasses
import json
from typing import Any

import numpy as np
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling.job import REMOVE_POINT
from metastone_jax.telemetry import files

AGGREGATORS = ('geometric', 'arithmetic', 'product', 'min', 'last')

_ARRAYS = {
  'correct_PN': np.bool_,
  'answers_PN': np.int64,
  'finished_PN': np.bool_,
  'tokens_PN': np.int64,
  'num_steps_PN': np.int64,
}
_OPTIONAL = {
  'step_logit_PNS': np.float32,
  'last_logit_PN': np.float32,
  'value_PN': np.float64,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Judged:
  """P problems x N samples; S is the most marks that a trace has.

  Attributes:
    problem_ids: one unique name a problem.
    correct_PN: bool, the verifier's word.
    answers_PN: ids, equal where answers of a problem agree; -1 unparsed.
    finished_PN: bool, ended by itself.
    tokens_PN: of the response.
    num_steps_PN: counted marks of each trace.
    step_logit_PNS: z at those marks, from the first; NaN beyond the last. None
      of a judge without a head.
    last_logit_PN: z at the last thinking position: the word on a trace that
      has no mark.
    value_PN: of a judge without a head: higher is better, any scale.

  Raises:
    UserError: a wrong shape; a logit that is missing or too many.
  """

  problem_ids: list[str]
  correct_PN: np.ndarray
  answers_PN: np.ndarray
  finished_PN: np.ndarray
  tokens_PN: np.ndarray
  num_steps_PN: np.ndarray
  step_logit_PNS: np.ndarray | None = None
  last_logit_PN: np.ndarray | None = None
  value_PN: np.ndarray | None = None

  def __post_init__(self):
    shape = np.shape(self.correct_PN)
    if len(shape) != 2 or 0 in shape:
      raise UserError(
        f'judged samples: shape {shape}; needs (problems, samples), both >= 1'
      )
    has_head = self.step_logit_PNS is not None
    if has_head == (self.value_PN is not None) or has_head != (
      self.last_logit_PN is not None
    ):
      raise UserError(
        'judged samples: give step_logit_PNS and last_logit_PN, or value_PN'
      )
    for name, dtype in {**_ARRAYS, **_OPTIONAL}.items():
      if getattr(self, name) is None:
        continue
      array = np.asarray(getattr(self, name)).astype(dtype)
      if name != 'step_logit_PNS' and array.shape != shape:
        raise UserError(
          f'judged samples: {name} has shape {array.shape}, needs {shape}'
        )
      if name in ('last_logit_PN', 'value_PN') and np.isnan(array).any():
        raise UserError(f'judged samples: {name} has NaN')
      object.__setattr__(self, name, array)
    if has_head:
      self._check_logits(shape)
    object.__setattr__(self, 'problem_ids', [str(i) for i in self.problem_ids])
    if len(self.problem_ids) != shape[0] or len(set(self.problem_ids)) != len(
      self.problem_ids
    ):
      raise UserError(
        f'judged samples: {len(self.problem_ids)} problem ids for {shape[0]} '
        'problems; each needs one of its own'
      )

  def _check_logits(self, shape):
    logit_PNS = self.step_logit_PNS
    if logit_PNS.ndim != 3 or logit_PNS.shape[:2] != shape:
      raise UserError(
        f'judged samples: step_logit_PNS has shape {logit_PNS.shape}, needs '
        f'{shape} and an axis of marks'
      )
    if (np.isnan(logit_PNS) == self._marked_PNS).any():
      raise UserError(
        'judged samples: step_logit_PNS must hold num_steps_PN logits a trace, '
        'from the first, and NaN beyond'
      )

  @property
  def shape(self) -> tuple[int, int]:
    """(P, N)."""
    return self.correct_PN.shape

  @property
  def has_head(self) -> bool:
    """Whether it judges step by step."""
    return self.step_logit_PNS is not None

  @property
  def _marked_PNS(self) -> np.ndarray:
    return (
      np.arange(self.step_logit_PNS.shape[-1]) < (self.num_steps_PN[..., None])
    )

  def score_PN(self, aggregator: str = 'geometric') -> np.ndarray:
    """Trace scores in [0, 1], float64.

    The formulas are those of `sprm.trace_score`; a trace without marks has the
    score of its last thinking position. A judge without a head has the share
    of all values that are below (the aggregator changes nothing there): the
    same order and the same ties.

    Args:
      aggregator: one of AGGREGATORS.

    Raises:
      UserError: another name.
    """
    if aggregator not in AGGREGATORS:
      raise UserError(
        f'aggregator must be one of {", ".join(AGGREGATORS)}: got '
        f'{aggregator!r}'
      )
    if not self.has_head:
      values, rank = np.unique(self.value_PN, return_inverse=True)
      return rank.reshape(self.shape) / max(1, len(values) - 1)
    marked_PNS = self._marked_PNS
    z_PNS = np.where(marked_PNS, self.step_logit_PNS, 0).astype(np.float64)
    count_PN = np.maximum(self.num_steps_PN, 1)
    if aggregator in ('geometric', 'product'):
      # log sigmoid(z) = -log(1 + exp(-z)), which never overflows this way.
      log_p_PN = np.where(marked_PNS, -np.logaddexp(0, -z_PNS), 0).sum(-1)
      if aggregator == 'geometric':
        log_p_PN = log_p_PN / count_PN
      score_PN = np.exp(log_p_PN)
    elif aggregator == 'arithmetic':
      p_PNS = np.where(marked_PNS, _sigmoid(z_PNS), 0)
      score_PN = p_PNS.sum(-1) / count_PN
    elif aggregator == 'min':
      score_PN = _sigmoid(
        np.where(marked_PNS, z_PNS, np.inf).min(-1, initial=np.inf)
      )
    else:
      index_PNS = np.arange(z_PNS.shape[-1]) == self.num_steps_PN[..., None] - 1
      score_PN = _sigmoid(np.where(index_PNS, z_PNS, 0).sum(-1))
    fallback_PN = _sigmoid(self.last_logit_PN.astype(np.float64))
    return np.where(self.num_steps_PN > 0, score_PN, fallback_PN)

  def save(self, path: epath.PathLike) -> epath.Path:
    """Writes one compressed .npz; the file is whole or absent."""
    arrays = {
      name: getattr(self, name)
      for name in (*_ARRAYS, *_OPTIONAL)
      if getattr(self, name) is not None
    }
    arrays['problem_ids'] = np.array(self.problem_ids, np.str_)
    return files.write_arrays(path, arrays)

  @classmethod
  def load(cls, path: epath.PathLike) -> 'Judged':
    """Reads what `save` wrote; `UserError` names a missing or broken file."""
    path = epath.Path(path)
    if not path.exists():
      raise UserError(f'{path}: no such file of judged samples')
    what = 'file of judged samples'
    with files.reading_arrays(path, what, REMOVE_POINT) as data:
      fields = {name: data[name] for name in _ARRAYS}
      fields |= {name: data[name] for name in _OPTIONAL if name in data}
      fields['problem_ids'] = data['problem_ids'].tolist()
    return cls(**fields)


@dataclasses.dataclass(frozen=True)
class About:
  """What an arm is and what it cost.

  Attributes:
    arm: its name.
    seed: of the policy and of everything drawn.
    task: whose problems were judged.
    set: 'tiny' or 'smollm2'.
    seconds: of the whole point, all tries.
    train_seconds: of fitting, of these.
    parameters_extra: held in memory beside the policy.
    parameters_trained: that the fit may move.
    flops_policy_per_problem: of drawing the N samples of a problem.
    flops_judge_per_problem: of judging them.
    kl_policy: nats a token by which the shared backbone's policy has moved, on
      the held-out responses; 0 = frozen, None = the policy is another model.
    lm_loss_before: nats a token of the held-out responses under the policy.
    lm_loss_after: likewise, under the fitted backbone; None as `kl_policy`.
    options: loss, gradient_scale, feature_layer, position, width, aggregator.
  """

  arm: str
  seed: int
  task: str
  set: str
  seconds: float
  train_seconds: float
  parameters_extra: int
  parameters_trained: int
  flops_policy_per_problem: float
  flops_judge_per_problem: float
  kl_policy: float | None
  lm_loss_before: float | None
  lm_loss_after: float | None
  options: dict[str, Any]

  def save(self, path: epath.PathLike) -> epath.Path:
    """Writes about.json, whole or not at all."""
    text = json.dumps(dataclasses.asdict(self), indent=2, allow_nan=False)
    return files.write_bytes_atomic(path, (text + '\n').encode())

  @classmethod
  def load(cls, path: epath.PathLike) -> 'About':
    """Reads what `save` wrote; `UserError` names a missing or broken file."""
    path = epath.Path(path)
    try:
      return cls(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
      raise UserError(
        f'{path}: not a whole description of an arm ({error}); remove the '
        'folder of this point, and the sweep makes it again'
      ) from error


def _sigmoid(z: np.ndarray) -> np.ndarray:
  """1 / (1 + exp(-z)) without overflow."""
  return np.exp(-np.logaddexp(0, -z))
