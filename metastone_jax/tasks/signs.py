"""Signs: "Make -6 using 7, 7, 1, 5." A search task with checkable steps.

Every number gets a sign, in the given order, so that the signed sum is the
goal. The goal is the sum of a random signing, so each problem has at least
one answer. A demonstration carries what remains of the goal: " - 7 leaves 1"
takes -7 away from -6. A right trace ends in "leaves 0", which can be checked
at a glance, while choosing the signs needs a search: the kind of task on which
a score head can be better than the policy that it reads.

The demonstrator may be imperfect (`random_demonstrations`): it then takes
random signs, reckons honestly what they leave, and answers with them. If every
demonstration ended in "leaves 0", a policy would learn to WRITE that last 0
instead of computing it, and there would be nothing left to check.

The split is by sorted numbers and the goal's size, stronger than by problem:
no held-out problem is a training problem re-ordered or negated.
"""

import functools

from metastone_jax import errors
from metastone_jax.tasks import base, templates

# Longer boxes are refused unread. The longest right answer is 32 terms of a
# sign, a number of up to six digits and spaces.
_MAX_ANSWER_CHARACTERS = 512
_MAX_DIGITS = 6
_SIGNS = {'+': 1, '-': -1, '\N{MINUS SIGN}': -1}
_DIGITS = frozenset('0123456789')


class Signs(base.ProceduralTask):
  """The task; see the module docstring.

  Args:
    seed: of the problems.
    min_terms: fewest numbers of a problem.
    max_terms: most numbers of a problem, at most 32.
    min_number: smallest number, at least 1.
    max_number: largest number.
    random_demonstrations: share of demonstrations, in [0, 1], whose signs are
      random (most of them miss the goal) and whose arithmetic is right.
  """

  name = 'signs'

  def __init__(
    self,
    seed: int = 0,
    *,
    min_terms: int = 5,
    max_terms: int = 6,
    min_number: int = 1,
    max_number: int = 9,
    random_demonstrations: float = 0.0,
  ):
    super().__init__(seed)
    base.check_range(self.name, 'min_terms', min_terms, 'max_terms', max_terms)
    base.check_range(
      self.name, 'min_number', min_number, 'max_number', max_number
    )
    if max_terms > 32 or max_number > 999:
      raise errors.UserError(
        f'task {self.name!r} takes max_terms <= 32 and max_number <= 999, got '
        f'{max_terms} and {max_number}'
      )
    if not 0 <= random_demonstrations <= 1:
      raise errors.UserError(
        f'task {self.name!r}: random_demonstrations={random_demonstrations} '
        'is a share, between 0 and 1'
      )
    self._random_demonstrations = random_demonstrations
    self._terms = (min_terms, max_terms)
    self._range = (min_number, max_number)

  def _candidate(self, split, index, attempt):
    draw = base.Draw(self.name, self.seed, split, index, attempt)
    count = draw.between(*self._terms)
    numbers = [draw.between(*self._range) for _ in range(count)]
    signs = [1 - 2 * draw.below(2) for _ in range(count)]
    goal = sum(s * n for s, n in zip(signs, numbers, strict=True))
    return base.Problem(
      task=self.name,
      id=f'{self.name}/{self.seed}/{split}/{index}',
      question=f'Make {goal} using {", ".join(map(str, numbers))}.',
      answer=_expression(signs, numbers),
      data={'numbers': numbers, 'goal': goal},
    )

  def _split_key(self, problem):
    numbers = sorted(problem.data['numbers'])
    return f'{self.name}:{numbers}:{abs(problem.data["goal"])}'

  def demonstration(self, problem: base.Problem) -> str:
    """A uniformly random right signing, fixed by the problem's id.

    With `random_demonstrations`, that share has any signing instead.

    Args:
      problem: of this task.

    Returns:
      One step a number, " + 7 leaves 5.\\n\\n" (sign, number, what remains of
      the goal), `</think>` and the signed sum in a box.
    """
    numbers, goal = problem.data['numbers'], problem.data['goal']
    ways = functools.cache(lambda i, rest: _count_ways(numbers, ways, i, rest))
    draw = base.Draw('demonstration', problem.id, problem.key)
    # 24 bits: a share to within 1e-7.
    explores = draw.below(2**24) < self._random_demonstrations * 2**24
    signs, steps, remaining = [], [], goal
    for i, number in enumerate(numbers):
      # Following each branch in proportion to the signings below it makes
      # every right signing equally likely.
      plus = ways(i + 1, remaining - number)
      minus = ways(i + 1, remaining + number)
      if explores:
        plus = minus = 1
      sign = 1 if draw.below(plus + minus) < plus else -1
      remaining -= sign * number
      signs.append(sign)
      steps.append(f' {"+" if sign > 0 else "-"} {number} leaves {remaining}')
    thinking = ''.join(f'{step}.\n\n' for step in steps)
    return templates.render_response(thinking, _expression(signs, numbers))

  def verify(self, problem: base.Problem, response_text: str) -> base.Verdict:
    """Right iff the last box holds the given numbers, signed, with that sum.

    Args:
      problem: of this task.
      response_text: what follows the prompt.

    Returns:
      The verdict; the answer key is the expression without spaces.
    """
    content = base.boxed_answer(response_text)
    terms = None if content is None else parse_signed_sum(content)
    if terms is None:
      return base.UNPARSED
    as_given = [abs(term) for term in terms] == problem.data['numbers']
    right = as_given and sum(terms) == problem.data['goal']
    key = ''.join(f'{term:+d}' for term in terms)
    return base.Verdict(reward=float(right), parsed=True, answer_key=key)


def parse_signed_sum(text: str) -> list[int] | None:
  """Reads "+ 7 - 7 - 1" as [7, -7, -1]; no evaluation of any code.

  The grammar is (sign number)+ with free blanks; the first sign may be absent.
  A zero keeps no sign, so "-0" reads as 0.

  Args:
    text: the content of a box.

  Returns:
    The signed terms, or None for anything else, including numbers of more
    than six digits.
  """
  if len(text) > _MAX_ANSWER_CHARACTERS:
    return None
  terms: list[int] = []
  position = 0
  while True:
    position = _skip_blanks(text, position)
    if position == len(text):
      return terms or None
    sign = _SIGNS.get(text[position])
    if sign is not None:
      position = _skip_blanks(text, position + 1)
    elif not terms:
      sign = 1
    else:
      return None
    end = position
    while end < len(text) and text[end] in _DIGITS:
      end += 1
    if not 0 < end - position <= _MAX_DIGITS:
      return None
    terms.append(sign * int(text[position:end]))
    position = end


def _skip_blanks(text: str, position: int) -> int:
  while position < len(text) and text[position] in ' \t\n':
    position += 1
  return position


def _count_ways(numbers, ways, i: int, rest: int) -> int:
  """Signings of numbers[i:] whose sum is `rest`; `ways` is this, cached."""
  if i == len(numbers):
    return int(rest == 0)
  return ways(i + 1, rest - numbers[i]) + ways(i + 1, rest + numbers[i])


def _expression(signs, numbers) -> str:
  return ' '.join(
    f'{"+" if s > 0 else "-"} {n}' for s, n in zip(signs, numbers, strict=True)
  )
