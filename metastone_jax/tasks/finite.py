"""Tasks that are a list of problems, in an order that needs no state.

Training passes over all problems in an order drawn anew each epoch, without
end. Which problem an index means is a function of (seed, index) and the number
of problems, not of their content: the same rows in another file format, on
another number of hosts or after a restart come in the same order.
"""

import copy
import hashlib
from collections.abc import Collection, Sequence
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import base

_ROUNDS = 6


def permuted(index: int, size: int, *names: Any) -> int:
  """Where a permutation of `size` elements takes `index`.

  A Feistel network with hashes as its round functions on the smallest
  4^h >= size numbers, walked until it comes back below `size`: no table, and
  no generator whose stream might change with a release.

  Args:
    index: in [0, size).
    size: number of elements.
    *names: what the permutation is drawn from.

  Returns:
    An integer in [0, size), another one for each index.
  """
  half = max(1, ((size - 1).bit_length() + 1) // 2)
  mask = (1 << half) - 1
  key = hashlib.blake2b('/'.join(map(str, names)).encode()).digest()
  while True:
    left, right = index >> half, index & mask
    for turn in range(_ROUNDS):
      text = turn.to_bytes(1, 'little') + right.to_bytes(16, 'little')
      digest = hashlib.blake2b(text, digest_size=8, key=key).digest()
      left, right = right, left ^ (int.from_bytes(digest, 'little') & mask)
    index = left << half | right
    if index < size:
      return index


class FiniteTask(base.Task):
  """A list of training problems and one of held-out problems.

  Args:
    name: of the task.
    seed: of the order of training.
    train: training problems, distinct ids.
    heldout: held-out problems, in the order in which they are evaluated.

  Attributes:
    bad_rows: 'stop' or 'skip': what becomes of problems of no use.
    may_skip: whether `bad_rows` is an option of this task.
  """

  bad_rows: str = 'stop'
  may_skip: bool = False

  def __init__(
    self,
    name: str,
    seed: int,
    train: Sequence[base.Problem],
    heldout: Sequence[base.Problem],
  ):
    self.name = name
    self.seed = int(seed)
    self._train = list(train)
    self._heldout = list(heldout)
    self.num_train = len(self._train)
    self.num_heldout = len(self._heldout)

  def problem(self, index: int, split: base.Split) -> base.Problem:
    """See `Task.problem`.

    Args:
      index: a held-out problem's place. Of 'train' any index >= 0: each block
        of `base.STREAM` indices is a stream of whole epochs.
      split: 'train' or 'heldout'.

    Raises:
      UserError: no such problem.
    """
    if split not in base.SPLITS:
      raise errors.UserError(
        f'split {split!r} is unknown; use one of {", ".join(base.SPLITS)}'
      )
    if index < 0:
      raise errors.UserError(
        f'problem index {index} of task {self.name!r} is negative; '
        'indices start at 0'
      )
    if split == 'heldout':
      if index >= self.num_heldout:
        raise errors.UserError(
          f'task {self.name!r} has {self.num_heldout} held-out problems, '
          f'problem {index} (from 0) was asked for; ask for fewer'
        )
      return self._heldout[index]
    if not self.num_train:
      raise errors.UserError(
        f'task {self.name!r} has no training problems; give it weight 0, or '
        "train on another split of it (heldout='hash' or 'none')"
      )
    stream, index = divmod(index, base.STREAM)
    epoch, place = divmod(index, self.num_train)
    return self._train[
      permuted(place, self.num_train, 'epoch', self.seed, stream, epoch)
    ]

  def problems(self) -> list[base.Problem]:
    """All problems, those of training first, in no order of drawing."""
    return self._train + self._heldout

  def where(self, problem: base.Problem) -> str:
    """The name of a problem for people; of a row, its file and line."""
    return problem.id

  def without(self, ids: Collection[str]) -> 'FiniteTask':
    """This task without the problems of these ids, of either split."""
    left = copy.copy(self)
    left._train = [p for p in self._train if p.id not in ids]
    left._heldout = [p for p in self._heldout if p.id not in ids]
    left.num_train = len(left._train)
    left.num_heldout = len(left._heldout)
    return left

  def excluding(self, keys: Collection[str]) -> 'FiniteTask':
    """This task without the training problems of these content keys."""
    left = copy.copy(self)
    left._train = [p for p in self._train if p.key not in keys]
    left.num_train = len(left._train)
    return left
