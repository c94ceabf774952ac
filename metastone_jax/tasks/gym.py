"""Any data set of reasoning-gym by name: `gym:gsm_symbolic` (extra `gym`).

Questions, answers and verifiers are the package's; an answer is right when its
verifier gives exactly 1.0 to the content of the last box behind the thinking
(it gives parts of a point for near misses). Some verifiers run a solver on
what the model wrote, so they are called in a process that can be killed.

The package seeds item i of a data set by seed + i and some sets lay out all
their items when they are made: here each block of items is a small data set of
its own, its seed drawn from (task seed, split, block). The split is by the
question's text. A problem carries its place instead of the package's metadata,
which is not always JSON: a verifier makes the item again.
"""

import dataclasses
import functools
import json
import re
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import base, templates
from metastone_jax.tasks.verifiers.base import Verifier

PREFIX = 'gym:'

# Items of a block; some sets cannot be made with a few.
_BLOCK = 64

# Sets whose items follow Python's order of sets of strings: two processes, or
# even two readings, do not agree on a problem (0.1.25, compared by hand).
_UNSTABLE = frozenset(
  {
    'isomorphic_strings',
    'knight_swap',
    'polynomial_multiplication',
    'ransom_note',
    'word_ladder',
  }
)

# Plain, or with commas between thousands; "3-4" is a difference.
_NUMBER = re.compile(r'(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)')


class Gym(base.ProceduralTask):
  """The task; see the module docstring.

  Args:
    seed: of the problems.
    name: `gym:` and the name of a data set of reasoning-gym.
    last_number: where an answer has no box, its last number counts, as usual
      for models that were never taught to box.
    **options: of that data set, without seed and size.

  Raises:
    UserError: reasoning-gym is not installed, an unknown data set or option,
      or a set whose problems differ from process to process.
  """

  def __init__(
    self,
    seed: int = 0,
    *,
    name: str,
    last_number: bool = False,
    **options: Any,
  ):
    super().__init__(seed)
    self.name = name
    self._gym_name = name.removeprefix(PREFIX)
    self._options = json.dumps(options, sort_keys=True)
    _check(name, self._gym_name, options)
    _block(self._gym_name, self._options, 0)
    self.verifier = GymVerifier(self._gym_name, self._options, last_number)
    # Only this set comes with worked solutions.
    self.demonstrates = self._gym_name == 'gsm_symbolic'

  def _candidate(self, split, index, attempt):
    # Each index owns a run of items, one for each attempt.
    block, item = divmod(index * base.MAX_ATTEMPTS + attempt, _BLOCK)
    draw = base.Draw(self.name, self.seed, split, block)
    # numpy, which some sets use, takes seeds of 32 bits.
    place = {'block': draw.below(2**32 - _BLOCK), 'item': item}
    entry = self.verifier.entry(place)
    return base.Problem(
      task=self.name,
      id=f'{self.name}/{self.seed}/{split}/{index}',
      question=entry['question'],
      answer=_text(entry['answer']),
      data=place,
    )

  def _split_key(self, problem):
    return f'{self.name}:{problem.question}'

  def demonstration(self, problem: base.Problem) -> str:
    """The set's own chain of thought, one sentence a step.

    Raises:
      UserError: this set has none.
    """
    if not self.demonstrates:
      raise errors.UserError(
        f'task {self.name!r} has no demonstrations; set '
        'data.num_demonstrations=0, or mix in a task that has some'
      )
    text = self.verifier.entry(problem.data)['metadata']['answer_cot']
    # The last line gives the answer ("#### 12"); the box does that here.
    lines = [x.strip().rstrip('.') for x in text.split('\n')]
    steps = [f'{x}.\n\n' for x in lines if x and not x.startswith('####')]
    return templates.render_response(''.join(steps), problem.answer)

  def verify(self, problem: base.Problem, response_text: str) -> base.Verdict:
    """See `GymVerifier`."""
    return self.verifier.verify(problem, response_text)


@dataclasses.dataclass(frozen=True)
class GymVerifier(Verifier):
  """reasoning-gym's verifier of one data set; 1.0 is right, all else wrong.

  Attributes:
    gym_name: of the data set.
    options: of the data set, as JSON.
    last_number: see `Gym`.
  """

  gym_name: str
  options: str
  last_number: bool = False

  name = 'gym'
  isolated = True

  def prepare(self) -> None:
    """See `Verifier.prepare`: the package takes seconds to import."""
    _block(self.gym_name, self.options, 0)

  def entry(self, place: dict[str, int]) -> dict[str, Any]:
    """The item of a problem's `data`, as the package gives it."""
    dataset = _block(self.gym_name, self.options, place['block'])
    return dataset[place['item']]

  def verify(self, problem: base.Problem, response_text: str) -> base.Verdict:
    """Scores the content of the last box behind the thinking.

    Args:
      problem: of the task.
      response_text: what follows the prompt.

    Returns:
      The verdict; unparsed where there is no box (nor, with `last_number`, a
      number), or the package's verifier
      cannot read what is in it. The answer key is the content with single
      blanks.
    """
    content = base.boxed_answer(response_text)
    if content is None and self.last_number:
      text = base.final_answer_text(response_text)
      numbers = _NUMBER.findall(text or '')
      content = numbers[-1].replace(',', '') if numbers else None
    content = None if content is None else content.strip()
    if not content:
      return base.UNPARSED
    dataset = _block(self.gym_name, self.options, problem.data['block'])
    entry = dataset[problem.data['item']]
    try:
      score = dataset.score_answer(content, entry)
    except MemoryError:
      raise
    except Exception:  # Several of them take any text to be well formed.
      return base.UNPARSED
    return base.Verdict(
      reward=float(score == 1.0),
      parsed=True,
      answer_key=re.sub(r'\s+', ' ', content),
    )

  def check(self, problem: base.Problem) -> str | None:
    """None: what the package makes it can verify."""
    return None


def _text(answer: Any) -> str:
  """Some sets have no answer of their own, only a verifier."""
  return answer if isinstance(answer, str) else ''


def _check(name: str, gym_name: str, options: dict[str, Any]) -> None:
  """Refuses what the package would not make, by name."""
  try:
    # Imported here: it takes seconds and is an extra.
    from reasoning_gym import factory
  except ImportError as error:
    raise errors.UserError(
      f'task {name!r} needs the package reasoning-gym; '
      'pip install "metastone_jax[gym]"'
    ) from error
  if gym_name not in factory.DATASETS:
    raise errors.UserError(
      f'task {name!r}: reasoning-gym has no data set {gym_name!r}; it has '
      f'{", ".join(sorted(factory.DATASETS))}'
    )
  if gym_name in _UNSTABLE:
    raise errors.UserError(
      f'task {name!r}: the problems of this data set differ from process to '
      'process (they depend on the order of Python sets), so a run could not '
      'be resumed; use another one'
    )
  fields = {f.name for f in dataclasses.fields(factory.DATASETS[gym_name][1])}
  fields -= {'seed', 'size'}
  for option in options:
    if option not in fields:
      raise errors.UserError(
        f'task {name!r} has no option {option!r}; known options: '
        f'{", ".join(sorted(fields))}'
      )
  try:
    factory.create_dataset(gym_name, seed=0, size=_BLOCK, **options)
  except Exception as error:  # Whatever its checks raise, asserts too.
    raise errors.UserError(
      f'task {name!r} does not take these options ({error}); change them'
    ) from error


@functools.lru_cache(maxsize=64)
def _block(gym_name: str, options: str, seed: int):
  """One small data set; kept, for verifying comes soon after drawing."""
  from reasoning_gym import factory

  return factory.create_dataset(
    gym_name, seed=seed, size=_BLOCK, **json.loads(options)
  )
