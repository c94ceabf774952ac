"""Grain pipelines addressed by a global position.

Two sources: `DemonstrationDataset`, one fixed set of supervised rows, shuffled
anew each epoch, without end; and `ProblemDataset`, an endless stream of
problems without answers for reinforcement learning and evaluation. Both are
`grain.MapDataset`s, that is, pure functions of an index: `batch_at(position,
n)` needs no iterator state, so the whole state of the data is one
`DataPosition`, and changing the number of hosts, or restarting, changes
nothing. A host that works on some rows of a global batch slices the batch.

Demonstrations are the first training problems of the tasks that have any. The
stream of training problems comes after their indices, and a draw that equals a
demonstration's problem by content is replaced, so no reinforcement-learning
problem has a supervised answer. Of a task with a fixed number of problems the
demonstrated ones are taken out instead, and each seed's stream starts with a
whole pass over the others. The held-out split is read from index 0 in order.
"""

import dataclasses
from typing import Any

import grain
import numpy as np

from metastone_jax import errors
from metastone_jax.data import chat
from metastone_jax.data import rows as rows_lib
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.tasks import base, templates
from metastone_jax.tasks import mixture as mixture_lib

# Each seed reads its own block of the training indices; replacements of
# excluded draws come from blocks that no seed's stream reaches.
_SEED_STRIDE = base.STREAM
_REPLACEMENT_STRIDE = 2**80
_STREAM_LENGTH = _SEED_STRIDE


@dataclasses.dataclass(frozen=True)
class DataPosition:
  """Where a dataset stands, counted over all hosts; goes into checkpoints.

  Attributes:
    seed: of the dataset.
    epoch: whole passes done; always 0 for an endless stream.
    index: elements consumed in this epoch.
  """

  seed: int
  epoch: int = 0
  index: int = 0

  def to_json(self) -> dict[str, int]:
    """A JSON-able dict."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, tree: dict[str, Any]) -> 'DataPosition':
    """The inverse of `to_json`."""
    try:
      return cls(**{name: int(value) for name, value in tree.items()})
    except (TypeError, ValueError, AttributeError) as error:
      raise errors.UserError(
        f'data position {tree!r} is unreadable ({error}); it needs the '
        'integers seed, epoch and index'
      ) from error


class _Dataset:
  """Position arithmetic shared by both sources."""

  seed: int
  epoch_length: int | None  # None: endless, one epoch.

  def start(self) -> DataPosition:
    """The position before the first element."""
    return DataPosition(self.seed)

  def advance(self, position: DataPosition, count: int) -> DataPosition:
    """The position after `count` more elements."""
    index = self.global_index(position) + count
    if self.epoch_length is None:
      return DataPosition(self.seed, 0, index)
    return DataPosition(self.seed, *divmod(index, self.epoch_length))

  def global_index(self, position: DataPosition) -> int:
    """Elements consumed since the start.

    Raises:
      UserError: the position belongs to another seed, or is out of range.
    """
    if position.seed != self.seed:
      raise errors.UserError(
        f'data position has seed {position.seed}, this run has seed '
        f'{self.seed}; resume with the seed of the checkpoint'
      )
    if self.epoch_length is None:
      valid = position.epoch == 0 and position.index >= 0
      index = position.index
    else:
      valid = position.epoch >= 0 and 0 <= position.index < self.epoch_length
      index = position.epoch * self.epoch_length + position.index
    if not valid:
      raise errors.UserError(
        f'data position {position.to_json()} is outside this data set '
        f'(epoch length {self.epoch_length}); resume with the data options of '
        'the checkpoint'
      )
    return index


class DemonstrationDataset(_Dataset):
  """See `demonstration_dataset`.

  Attributes:
    dataset: the `grain.MapDataset`; element i is a dict of tokens_T int32,
      length int32 (prompt and response) and prompt_length int32.
    problem_keys: content keys of the demonstrations' problems.
  """

  def __init__(self, *, tokens_NT, length_N, prompt_length_N, keys, seed):
    self.seed = seed
    self.epoch_length = len(length_N)
    self.problem_keys = frozenset(keys)
    elements = [
      {'tokens_T': tokens_T, 'length': length, 'prompt_length': prompt_length}
      for tokens_T, length, prompt_length in zip(
        tokens_NT, length_N, prompt_length_N, strict=True
      )
    ]
    # grain adds the epoch to this seed, so seed 0 in epoch 1 would shuffle
    # like seed 1 in epoch 0; hashing keeps runs apart.
    shuffle_seed = base.Draw('shuffle', seed).below(2**32)
    self.dataset = (
      grain.MapDataset.source(elements).shuffle(seed=shuffle_seed).repeat()
    )

  def batch_at(
    self, position: DataPosition, batch_size: int
  ) -> dict[str, np.ndarray]:
    """The `batch_size` elements that follow a position.

    Args:
      position: of this data set; epochs run on within a batch.
      batch_size: B, the GLOBAL batch.

    Returns:
      tokens_BT int32 right-padded, length_B and prompt_length_B int32.
    """
    first = self.global_index(position)
    elements = [self.dataset[first + b] for b in range(batch_size)]
    return {
      'tokens_BT': np.stack([e['tokens_T'] for e in elements]),
      'length_B': np.stack([e['length'] for e in elements]),
      'prompt_length_B': np.stack([e['prompt_length'] for e in elements]),
    }


class ProblemDataset(_Dataset):
  """See `problem_dataset`.

  Attributes:
    dataset: the `grain.MapDataset`; element i is a dict of problem,
      prompt_S int32 right-padded and prompt_length int32.
    max_prompt_length: S.
  """

  def __init__(self, source, encode, *, seed, max_prompt_length):
    self.seed = seed
    self.epoch_length = None
    self.max_prompt_length = max_prompt_length
    self.dataset = grain.MapDataset.source(source).map(encode)

  def batch_at(
    self, position: DataPosition, num_problems: int
  ) -> tuple[list[base.Problem], np.ndarray, np.ndarray]:
    """The problems that follow a position.

    Args:
      position: of this data set.
      num_problems: P, of the GLOBAL batch.

    Returns:
      P problems, prompt_PS int32 right-padded, prompt_length_P int32.
    """
    first = self.global_index(position)
    elements = [self.dataset[first + p] for p in range(num_problems)]
    return (
      [e['problem'] for e in elements],
      np.stack([e['prompt_S'] for e in elements]),
      np.stack([e['prompt_length'] for e in elements]),
    )


def demonstration_dataset(
  mixture: mixture_lib.Mixture,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  size: int,
  seed: int,
  max_length: int,
  template: chat.PromptTemplate = templates.CHATML_THINK,
) -> DemonstrationDataset:
  """One fixed set of demonstrations, shuffled each epoch, without end.

  Args:
    mixture: its tasks that have demonstrations give problems 0..size-1 of
      their training split, and responses.
    tokenizer: of the rows.
    size: demonstrations in the set, at least 1.
    seed: of the order alone; the set depends on the mixture.
    max_length: T, tokens of a row, prompt and response.
    template: chat form of prompts and responses.

  Returns:
    The data set, tokenized (about 0.1 ms a demonstration).

  Raises:
    UserError: size < 1, no task has demonstrations, or not as many; or a
      demonstration longer than `max_length`.
  """
  if size < 1:
    raise errors.UserError(
      f'the set of demonstrations has size {size}; give at least 1'
    )
  able = mixture.demonstrating()
  if able is None:
    raise errors.UserError(
      f'no task of {", ".join(mixture.training_tasks())} has demonstrations; '
      'name a field of solutions (fields.solution), or train without: '
      'data.num_demonstrations=0 and phases without demonstrations_per_step'
    )
  mixture = able
  for name, task in mixture.training_tasks().items():
    asked = mixture.count_before(name, size)
    if task.num_train is not None and asked > task.num_train:
      raise errors.UserError(
        f'{asked} demonstrations are asked of task {name!r}, which has '
        f'{task.num_train} training problems; lower data.num_demonstrations'
      )
  problems = [mixture.problem(i, 'train') for i in range(size)]
  prompts = tokenizer.encode_batch(
    [template.render(p.question) for p in problems]
  )
  # Tokenized apart, as the sampler sees them: a merge across the border
  # would give the prompt other ids in training than in sampling.
  responses = tokenizer.encode_batch(
    [template.response(mixture.demonstration(p)) for p in problems]
  )
  for problem, prompt, response in zip(
    problems, prompts, responses, strict=True
  ):
    if len(prompt) + len(response) > max_length:
      raise errors.UserError(
        f'the demonstration of problem {problem.id} has {len(prompt)} prompt '
        f'and {len(response)} response tokens, more than {max_length}; raise '
        'data.max_response_length (or data.max_prompt_length)'
      )
  tokens_NT, length_N = rows_lib.pad_rows(
    [p + r for p, r in zip(prompts, responses, strict=True)],
    max_length,
    tokenizer.pad_id,
  )
  return DemonstrationDataset(
    tokens_NT=tokens_NT,
    length_N=length_N,
    prompt_length_N=np.array([len(p) for p in prompts], np.int32),
    keys=[p.key for p in problems],
    seed=seed,
  )


def problem_dataset(
  mixture: mixture_lib.Mixture,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  seed: int,
  split: base.Split,
  max_prompt_length: int,
  num_demonstrations: int = 0,
  template: chat.PromptTemplate = templates.CHATML_THINK,
) -> ProblemDataset:
  """An endless stream of problems without answers.

  Args:
    mixture: gives the problems.
    tokenizer: of the prompts.
    seed: picks the stream of the training split; recorded in positions. The
      held-out stream is the mixture's own, the same for every seed given
      here, so that runs on one mixture are judged on the same problems.
    split: 'train' or 'heldout'.
    max_prompt_length: S, tokens of a padded prompt.
    num_demonstrations: size of the demonstration set on the same mixture;
      the training stream starts after it and leaves its problems out.
    template: chat form of the prompts.

  Returns:
    The data set.

  Raises:
    UserError: bad seed or split here; when read, a prompt that is longer than
      `max_prompt_length` (of finite tasks see `prompt_lengths`), or no problem
      left beside the demonstrations.
  """
  if split not in base.SPLITS:
    raise errors.UserError(
      f'split {split!r} is unknown; use one of {", ".join(base.SPLITS)}'
    )
  if not 0 <= seed < _SEED_STRIDE:
    raise errors.UserError(f'data seed {seed} must be in 0..2^40-1')
  if split == 'train':
    demonstrated = mixture.demonstrating()
    excluded = frozenset(
      demonstrated.problem(i, 'train').key
      for i in range(num_demonstrations)
      if demonstrated is not None
    )
    source = _TrainingSource(mixture, seed, num_demonstrations, excluded)
  else:
    source = _HeldoutSource(mixture)
  pad_id = tokenizer.pad_id

  def encode(problem: base.Problem) -> dict[str, Any]:
    ids = tokenizer.encode(template.render(problem.question))
    if len(ids) > max_prompt_length:
      raise errors.UserError(
        f'the prompt of problem {problem.id} has {len(ids)} tokens, more than '
        f'{max_prompt_length}; raise data.max_prompt_length'
      )
    prompt_S = np.full(max_prompt_length, pad_id, np.int32)
    prompt_S[: len(ids)] = ids
    return {
      'problem': problem,
      'prompt_S': prompt_S,
      'prompt_length': np.int32(len(ids)),
    }

  return ProblemDataset(
    source, encode, seed=seed, max_prompt_length=max_prompt_length
  )


class _HeldoutSource(grain.sources.RandomAccessDataSource):
  """Held-out problems by index, as a grain source."""

  def __init__(self, mixture):
    self._mixture = mixture

  def __len__(self) -> int:
    return _STREAM_LENGTH

  def __getitem__(self, index) -> base.Problem:
    return self._mixture.problem(int(index), 'heldout')

  def __repr__(self) -> str:
    return '_HeldoutSource()'


class _TrainingSource(grain.sources.RandomAccessDataSource):
  """Training problems by index, without the excluded, as a grain source."""

  def __init__(self, mixture, seed, skipped, excluded):
    self._mixture = mixture
    self._stream = seed * _SEED_STRIDE
    self._offset = self._stream + skipped
    self._excluded = excluded
    # Tasks of a fixed number of problems: (what is left of it, the index that
    # its first draw of this stream has).
    self._finite = {}
    for name, task in mixture.training_tasks().items():
      if task.num_train is None:
        continue
      left = task.excluding(excluded)
      if task.num_train and not left.num_train:
        raise _nothing_left(task, excluded)
      _ = left.problem(0, 'train')  # refuses a task without any
      self._finite[name] = left, mixture.count_before(name, self._offset)

  def __len__(self) -> int:
    return _STREAM_LENGTH

  def __getitem__(self, index) -> base.Problem:
    task, task_index = self._mixture.locate(self._offset + int(index))
    if task.name in self._finite:
      left, first = self._finite[task.name]
      return left.problem(self._stream + task_index - first, 'train')
    for attempt in range(base.MAX_ATTEMPTS):
      problem = task.problem(
        task_index + attempt * _REPLACEMENT_STRIDE, 'train'
      )
      if problem.key not in self._excluded:
        return problem
    raise _nothing_left(task, self._excluded)

  def __repr__(self) -> str:
    return f'_TrainingSource(offset={self._offset})'


def _nothing_left(task, excluded) -> errors.UserError:
  return errors.UserError(
    f'task {task.name!r} has no training problem left beside the '
    f'{len(excluded)} distinct problems of the demonstrations; '
    'use fewer demonstrations (data.num_demonstrations) or widen its options'
  )
