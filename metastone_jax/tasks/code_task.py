"""Tasks whose problems are programs to write: evaluation sets of code.

All problems are held out. The training split is the same problems and exists
only where it is asked for (`train=True`): a set that is trained on measures
nothing any more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import base, finite
from metastone_jax.tasks.verifiers import code, registry


def check_limit(name: str, limit: int) -> None:
  """UserError for a task that shall have less than no problem."""
  if limit < 0:
    raise errors.UserError(
      f'task {name!r}: limit={limit} must be at least 1, or 0 for all problems'
    )


class CodeTask(finite.FiniteTask):
  """A list of problems that `verifiers.code` judges.

  Args:
    name: of the task.
    seed: of the order of training.
    problems: in the order of evaluation.
    train: whether there is a training split.
    verifier_options: of `verifiers.code.Code`.

  Attributes:
    judge: the class of the verifier.

  Raises:
    UserError: see `verifiers.code.Code`.
  """

  demonstrates = False
  judge: type[code.Code] = code.Code

  def __init__(
    self,
    name: str,
    seed: int,
    problems: Sequence[base.Problem],
    *,
    train: bool,
    verifier_options: Mapping[str, Any],
  ):
    self.verifier = registry.build(self.judge, verifier_options)
    super().__init__(name, seed, problems if train else (), problems)

  def problem(self, index: int, split: base.Split) -> base.Problem:
    """See `FiniteTask.problem`."""
    if split == 'train' and not self.num_train:
      raise errors.UserError(
        f'task {self.name!r} is an evaluation set and has no training '
        'problems; give it weight 0, or train on it with train=True'
      )
    return super().problem(index, split)

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
