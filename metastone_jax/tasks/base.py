"""What a task is: a source of problems that can be checked.

A task gives problems by (seed, split, index) alone: no state that a checkpoint
would have to carry, the same problem on every host. The two splits 'train' and
'heldout' never share a problem.

A `ProceduralTask` is endless. Its split is a property of the problem's
content (a stable hash of `split_key`), whatever the seed, and an index draws
candidates until one belongs to its split. Held-out problems of one seed are
distinct from each other as well; training problems may repeat by chance, as
independent draws do. A `finite.FiniteTask` is a list of problems.

A new task is one file with a subclass of `ProceduralTask` or `FiniteTask` and
one line in `metastone_jax/tasks/registry.py`; problems in files need none
(`dataset`).
"""

import abc
import dataclasses
import hashlib
import threading
from typing import Any, Literal

from metastone_jax import errors
from metastone_jax.tasks import boxed

Split = Literal['train', 'heldout']
SPLITS: tuple[Split, ...] = ('train', 'heldout')

# One in this many problems (by hash of the split key) is held out.
HELDOUT_ONE_IN = 8

# Training indices from s * STREAM on are the stream of seed s of a run.
STREAM = 2**40

# Candidates tried before a task is declared too small. At one in eight, a
# healthy task fails this with probability (7/8)^1024 = 4e-60.
MAX_ATTEMPTS = 1024

# The list of held-out problems grows on demand; a module-level lock keeps
# task objects picklable (verifier processes receive them).
_HELDOUT_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Problem:
  """One question with everything its verifier needs.

  Attributes:
    task: name of the task that made it, and that can verify it.
    id: unique name, `task/seed/split/index`, or `task/row` of a data set.
    question: the text the user asks.
    answer: a right answer as text (one of several, for search tasks).
    data: the content in machine form; JSON-able.
  """

  task: str
  id: str
  question: str
  answer: str
  data: dict[str, Any] = dataclasses.field(hash=False)

  @property
  def key(self) -> str:
    """Content identity: equal keys mean the same problem, whatever its id."""
    return f'{self.task}:{self.question}'


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a verifier says of one response.

  Attributes:
    reward: 1.0 if the final answer is right, else 0.0.
    parsed: whether a final answer could be read at all.
    answer_key: canonical form of the answer, for voting: equal answers have
      equal keys. Empty if not parsed.
    failure: why there is NO verdict on the answer, such as 'timeout' or
      'crash' of the verifier; then the reward is 0 and says nothing. Empty
      where the verifier came to an end.
    reason: what an answer that was judged did beyond being wrong, such as
      'program/timeout'; to be counted. Empty for most.
  """

  reward: float
  parsed: bool
  answer_key: str
  failure: str = ''
  reason: str = ''


UNPARSED = Verdict(reward=0.0, parsed=False, answer_key='')


class Task(abc.ABC):
  """A source of problems with demonstrations and a verifier.

  Attributes:
    name: in configs, metrics and problem ids.
    seed: of the problems.
    verifier: the `verifiers.Verifier` that judges responses, in a process of
      its own if it says so; None: `verify` is a pure parser.
    num_train: training problems there are; None: without end.
    num_heldout: held-out problems there are; None: as many as are asked for.
    demonstrates: whether problems have demonstrations.
  """

  name: str
  seed: int
  verifier: Any = None
  num_train: int | None = None
  num_heldout: int | None = None
  demonstrates: bool = True

  @abc.abstractmethod
  def problem(self, index: int, split: Split) -> Problem:
    """Problem number `index` >= 0 of a split; pure in (seed, split, index)."""

  @abc.abstractmethod
  def demonstration(self, problem: Problem) -> str:
    """A right response: what follows the prompt, which ends in `<think>\\n`."""

  @abc.abstractmethod
  def verify(self, problem: Problem, response_text: str) -> Verdict:
    """Checks the text that follows the prompt; never trusts the thinking."""


class Draw:
  """Independent uniform integers from one hash of a few names.

  A 512-bit digest read as digits in mixed radix: far cheaper than seeding a
  generator for each problem, and the bias is below 2^-300 for the about 150
  bits that a problem uses.
  """

  def __init__(self, *names: Any):
    digest = hashlib.blake2b('/'.join(map(str, names)).encode()).digest()
    self._state = int.from_bytes(digest, 'little')

  def below(self, n: int) -> int:
    """A uniform integer in [0, n)."""
    self._state, digit = divmod(self._state, n)
    return digit

  def between(self, low: int, high: int) -> int:
    """A uniform integer in [low, high], both ends included."""
    return low + self.below(high - low + 1)


def split_of(split_key: str) -> Split:
  """The split a content key belongs to; stable across versions and seeds."""
  digest = hashlib.blake2b(split_key.encode(), digest_size=8).digest()
  heldout = int.from_bytes(digest, 'little') % HELDOUT_ONE_IN == 0
  return 'heldout' if heldout else 'train'


class ProceduralTask(Task):
  """A task whose problems are drawn at random and assigned to splits by hash.

  Subclasses give `_candidate` and `_split_key`. Held-out problem i is the i-th
  DISTINCT problem of its stream, so reaching it draws all before it once
  (about 0.1 ms each, cached); training problems are random access.
  """

  def __init__(self, seed: int):
    self.seed = int(seed)
    self._heldout: list[Problem] = []
    self._heldout_keys: set[str] = set()
    self._heldout_draws = 0

  @abc.abstractmethod
  def _candidate(self, split: Split, index: int, attempt: int) -> Problem:
    """A draw of unknown split, pure in its arguments and the seed."""

  @abc.abstractmethod
  def _split_key(self, problem: Problem) -> str:
    """What must not be shared by the two splits, as text."""

  def problem(self, index: int, split: Split) -> Problem:
    """See `Task.problem`; the split is checked by content, not by trust."""
    if split not in SPLITS:
      raise errors.UserError(
        f'split {split!r} is unknown; use one of {", ".join(SPLITS)}'
      )
    if index < 0:
      raise errors.UserError(
        f'problem index {index} of task {self.name!r} is negative; '
        'indices start at 0'
      )
    if split == 'train':
      return self._accept(split, index)
    with _HELDOUT_LOCK:
      barren = 0
      while len(self._heldout) <= index:
        found = self._accept(split, self._heldout_draws)
        self._heldout_draws += 1
        if found.key in self._heldout_keys:
          barren += 1
          if barren >= MAX_ATTEMPTS:
            raise errors.UserError(
              f'task {self.name!r} has only about {len(self._heldout)} '
              f'distinct held-out problems, problem {index} was asked for; '
              'ask for fewer or widen its options'
            )
          continue
        barren = 0
        self._heldout_keys.add(found.key)
        found_id = f'{self.name}/{self.seed}/{split}/{len(self._heldout)}'
        self._heldout.append(dataclasses.replace(found, id=found_id))
      return self._heldout[index]

  def _accept(self, split: Split, index: int) -> Problem:
    """The first candidate of draw `index` that belongs to the split."""
    for attempt in range(MAX_ATTEMPTS):
      candidate = self._candidate(split, index, attempt)
      if split_of(self._split_key(candidate)) == split:
        return candidate
    raise errors.UserError(
      f'task {self.name!r} has no {split} problem with these options; '
      'widen them'
    )


def check_range(task: str, low_name: str, low: int, high_name: str, high: int):
  """UserError unless 1 <= low <= high, naming the two options."""
  if not 1 <= low <= high:
    raise errors.UserError(
      f'task {task!r} needs 1 <= {low_name} <= {high_name}, '
      f'got {low_name}={low}, {high_name}={high}'
    )


def boxed_answer(response_text: str) -> str | None:
  """The content of the last box behind the thinking; None where there is none.

  Args:
    response_text: the text that follows the prompt.
  """
  text = final_answer_text(response_text)
  return None if text is None else boxed.last_boxed(text)


def final_answer_text(response_text: str) -> str | None:
  """The part of a response that may hold the final answer.

  The text after the last `</think>`, up to the first `<|im_end|>` of the
  response; None where the thinking never ended. A box inside the thinking
  is therefore never an answer.

  Args:
    response_text: the text that follows the prompt.
  """
  turn, _, _ = response_text.partition('<|im_end|>')
  _, tag, answer = turn.rpartition('</think>')
  return answer if tag else None
