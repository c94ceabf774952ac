"""Tasks whose problems are programs to write: evaluation sets of code.

All problems are held out. The training split is the same problems in an order
drawn anew each epoch, and exists only where it is asked for (`train=True`): a
set that is trained on measures nothing any more.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import base
from metastone_jax.tasks.verifiers import code


class CodeTask(base.Task):
  """A list of problems that `verifiers.code` judges.

  Args:
    name: of the task.
    seed: of the order of training.
    problems: in the order of evaluation.
    train: whether there is a training split.
    verifier_options: of `verifiers.code.Code`.

  Attributes:
    num_heldout: problems.
    num_train: the same, or 0 without `train`.

  Raises:
    UserError: see `verifiers.code.Code`.
  """

  demonstrates = False

  def __init__(
    self,
    name: str,
    seed: int,
    problems: Sequence[base.Problem],
    *,
    train: bool,
    verifier_options: Mapping[str, Any],
  ):
    self.name = name
    self.seed = int(seed)
    self.verifier = code.Code(**verifier_options)
    self._problems = list(problems)
    self.num_heldout = len(self._problems)
    self.num_train = self.num_heldout if train else 0

  def problem(self, index: int, split: base.Split) -> base.Problem:
    """See `Task.problem`; training indices go round without end."""
    if split not in base.SPLITS:
      raise errors.UserError(
        f'split {split!r} is unknown; use one of {", ".join(base.SPLITS)}'
      )
    if split == 'train' and not self.num_train:
      raise errors.UserError(
        f'task {self.name!r} is an evaluation set and has no training '
        'problems; give it weight 0, or train on it with train=True'
      )
    if index < 0 or (split == 'heldout' and index >= self.num_heldout):
      raise errors.UserError(
        f'task {self.name!r} has {self.num_heldout} {split} problems, problem '
        f'{index} (from 0) was asked for'
      )
    if split == 'train':
      epoch, place = divmod(index, self.num_train)
      index = self._order(epoch)[place]
    return self._problems[index]

  @functools.lru_cache(maxsize=4)  # noqa: B019 (tasks live as long as a run)
  def _order(self, epoch: int) -> list[int]:
    def key(i):
      draw = base.Draw(self.name, self.seed, 'epoch', epoch, i)
      return draw.below(2**64), i

    return sorted(range(self.num_train), key=key)

  def demonstration(self, problem: base.Problem) -> str:
    """There is none, unless a subclass knows better.

    Raises:
      UserError: always.
    """
    raise errors.UserError(
      f'task {self.name!r} has no solutions to imitate; set '
      'data.num_demonstrations=0'
    )

  def verify(self, problem: base.Problem, response_text: str) -> base.Verdict:
    """What the verifier says; the program runs in the sandbox."""
    return self.verifier.verify(problem, response_text)
