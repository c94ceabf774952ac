"""The raw material of every evaluation: N scored samples of P problems.

Contract: `EvaluationSamples` is validated when it is made, immutable in shape,
and travels as one `.npz` file (no pickles) through `etils.epath`, so a local
folder and gs:// are the same. Summaries, plots and reports are pure functions
of it: whoever keeps the file can recompute every number.
"""

# ruff: noqa: N802, N815 (shapes in names carry capitals)

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.evaluation import estimators
from metastone_jax.telemetry import files

_ARRAYS = {
  'scores_PN': np.float64,
  'correct_PN': np.bool_,
  'answers_PN': np.int64,
  'finished_PN': np.bool_,
  'tokens_PN': np.int64,
}
# What not every source of samples knows: name -> (type, has an axis N).
_OPTIONAL = {
  'thinking_PN': (np.int64, True),
  'read_flops_P': (np.float64, False),
  'write_flops_PN': (np.float64, True),
  'score_flops_PN': (np.float64, True),
  'failed_PN': (np.bool_, True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSamples:
  """N samples of each of P held-out problems.

  Attributes:
    task: name of the task.
    scores_PN: SPRM trace scores in [0, 1].
    correct_PN: bool, the verifier's word.
    answers_PN: answer ids, equal where the answers of one problem agree; -1
      unparsed (then never correct).
    finished_PN: bool, ended by itself and not by the length limit.
    tokens_PN: tokens drawn, >= 0: of the response, or of all k traces and the
      answer.
    problem_ids: one unique name a problem; equal lists make two sets of
      samples comparable in pairs.
    released: select as the released code does, by the score alone; default: a
      truncated or unparsed sample wins only where there is no other (SPEC 5).
    split: of the problems.
    traces: a sample is the answer written once from the best of so many
      thinking traces, and its score is that trace's; 0 = a whole response.
    thinking_PN: how many of the tokens are thinking, </think> included.
    read_flops_P: of reading the prompt once.
    write_flops_PN: of drawing the tokens behind it.
    score_flops_PN: of the score head at their step marks.
    subjects: of each problem, where a set has them.
    failed_PN: the verifier had no verdict (its process was killed). Such a
      sample counts as wrong and votes for nothing, but competes like any that
      ended: that it is unreadable is the checker's doing, and a rule must not
      gain by it. None = there is none.
    failures: how many of those there are, by their reason.
    reasons: how many of the others were wrong for one that has a name, such as
      'program/timeout'.

  Raises:
    UserError: a wrong shape, NaN, a score outside [0, 1], repeated ids.
  """

  task: str
  scores_PN: np.ndarray
  correct_PN: np.ndarray
  answers_PN: np.ndarray
  finished_PN: np.ndarray
  tokens_PN: np.ndarray
  problem_ids: list[str]
  released: bool = False
  split: str = 'heldout'
  traces: int = 0
  thinking_PN: np.ndarray | None = None
  read_flops_P: np.ndarray | None = None
  write_flops_PN: np.ndarray | None = None
  score_flops_PN: np.ndarray | None = None
  subjects: list[str] | None = None
  failed_PN: np.ndarray | None = None
  failures: Mapping[str, int] = dataclasses.field(default_factory=dict)
  reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    shape = np.shape(self.correct_PN)
    if len(shape) != 2 or 0 in shape:
      raise UserError(
        f'evaluation samples: shape {shape}; needs (problems, samples), both '
        '>= 1'
      )
    estimators.check_scores(self.scores_PN, shape)
    for name, dtype in _ARRAYS.items():
      array = np.asarray(getattr(self, name))
      if array.shape != shape:
        raise UserError(
          f'evaluation samples: {name} has shape {array.shape}, needs {shape}'
        )
      if dtype == np.int64 and not np.issubdtype(array.dtype, np.integer):
        raise UserError(
          f'evaluation samples: {name} is {array.dtype}, needs integers'
        )
      if dtype == np.bool_ and not np.isin(array, (0, 1)).all():
        raise UserError(f'evaluation samples: {name} needs bool or 0/1')
      object.__setattr__(self, name, array.astype(dtype))
    for name, (dtype, has_samples) in _OPTIONAL.items():
      if getattr(self, name) is None:
        continue
      array = np.asarray(getattr(self, name), dtype)
      wanted = shape if has_samples else shape[:1]
      if array.shape != wanted:
        raise UserError(
          f'evaluation samples: {name} has shape {array.shape}, needs {wanted}'
        )
      object.__setattr__(self, name, array)
    if self.subjects is not None and len(self.subjects) != shape[0]:
      raise UserError(
        f'evaluation samples: {len(self.subjects)} subjects for {shape[0]} '
        'problems'
      )
    object.__setattr__(self, 'task', str(self.task))
    object.__setattr__(self, 'problem_ids', [str(i) for i in self.problem_ids])
    if len(self.problem_ids) != shape[0]:
      raise UserError(
        f'evaluation samples: {len(self.problem_ids)} problem ids for '
        f'{shape[0]} problems'
      )
    if len(set(self.problem_ids)) != shape[0]:
      raise UserError(
        'evaluation samples: problem ids repeat; each problem must count once'
      )
    if self.scores_PN.min() < 0 or self.scores_PN.max() > 1:
      raise UserError(
        'evaluation samples: scores must be trace scores in [0, 1], not '
        'logits or log-probs'
      )
    if self.tokens_PN.min() < 0:
      raise UserError('evaluation samples: tokens_PN has negative counts')
    if (self.correct_PN & (self.answers_PN == estimators.UNPARSED)).any():
      raise UserError(
        'evaluation samples: a sample is unparsed (answer -1) and correct'
      )
    if (self.correct_PN & self.without_verdict_PN).any():
      raise UserError(
        'evaluation samples: a sample has no verdict (failed_PN) and is correct'
      )

  @property
  def shape(self) -> tuple[int, int]:
    """(P, N)."""
    return self.correct_PN.shape

  @property
  def without_verdict_PN(self) -> np.ndarray:
    """`failed_PN`, or all False."""
    if self.failed_PN is None:
      return np.zeros(self.shape, bool)
    return self.failed_PN

  @property
  def unparsed_PN(self) -> np.ndarray:
    """What a verifier has read and found no answer in."""
    unread_PN = self.answers_PN == estimators.UNPARSED
    return unread_PN & ~self.without_verdict_PN

  @property
  def eligible_PN(self) -> np.ndarray:
    """What may win before anything else: finished and not unparsed, or all."""
    if self.released:
      return np.ones(self.shape, bool)
    return self.finished_PN & ~self.unparsed_PN

  def save(self, path: epath.PathLike) -> epath.Path:
    """Writes one compressed .npz; the file is whole or absent, never half."""
    arrays = dict(
      task=np.array(self.task),
      problem_ids=np.array(self.problem_ids, np.str_),
      released=np.array(self.released),
      split=np.array(self.split),
      traces=np.array(self.traces),
      failures=np.array(json.dumps(dict(self.failures))),
      reasons=np.array(json.dumps(dict(self.reasons))),
      **{name: getattr(self, name) for name in _ARRAYS},
      **{
        name: getattr(self, name)
        for name in _OPTIONAL
        if getattr(self, name) is not None
      },
      **({} if self.subjects is None else {'subjects': self.subjects}),
    )
    return files.write_arrays(path, arrays)

  @classmethod
  def load(cls, path: epath.PathLike) -> 'EvaluationSamples':
    """Reads what `save` wrote; `UserError` names a missing or broken file."""
    path = epath.Path(path)
    if not path.exists():
      raise UserError(f'{path}: no such evaluation samples file')
    what, fix = 'evaluation samples file', 'run the evaluation again'
    with files.reading_arrays(path, what, fix) as data:
      fields = {name: data[name] for name in _ARRAYS}
      fields['task'] = str(data['task'])
      fields['problem_ids'] = data['problem_ids'].tolist()
      fields['released'] = bool(data['released'])
      fields['split'] = str(data['split'])
      fields['traces'] = int(data['traces'])
      fields['failures'] = json.loads(str(data['failures']))
      fields['reasons'] = json.loads(str(data['reasons']))
      fields |= {name: data[name] for name in _OPTIONAL if name in data}
      if 'subjects' in data:
        fields['subjects'] = data['subjects'].tolist()
    return cls(**fields)
