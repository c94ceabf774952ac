"""Chain sums: "4 - 1 - 7 =" step by step, from the package reasoning-gym.

Problems and question text are reasoning-gym's `chain_sum`; an answer is right
when reasoning-gym's own verifier gives 1.0 AND the expression, evaluated here
from scratch, agrees. A demonstration writes the running sum after each term.

reasoning-gym seeds each item by seed + index, so neighbouring seeds would
share their items: the seed is hashed first. The split is by the sorted signed
terms: no held-out problem is a training problem re-ordered.
"""

from metastone_jax import errors
from metastone_jax.tasks import base, templates

_MAX_DIGITS = 12
_DIGITS = frozenset('0123456789')


class ChainSum(base.ProceduralTask):
  """The task; see the module docstring.

  Args:
    seed: of the problems.
    min_terms: fewest terms of a sum, at least 2.
    max_terms: most terms of a sum.
    min_digits: fewest digits of a term.
    max_digits: most digits of a term.

  Raises:
    UserError: reasoning-gym is not installed, or an option is out of range.
  """

  name = 'chain_sum'

  def __init__(
    self,
    seed: int = 0,
    *,
    min_terms: int = 3,
    max_terms: int = 5,
    min_digits: int = 1,
    max_digits: int = 1,
  ):
    super().__init__(seed)
    base.check_range(self.name, 'min_terms', min_terms, 'max_terms', max_terms)
    base.check_range(
      self.name, 'min_digits', min_digits, 'max_digits', max_digits
    )
    if min_terms < 2 or max_digits > 9:
      raise errors.UserError(
        f'task {self.name!r} takes min_terms >= 2 and max_digits <= 9, got '
        f'{min_terms} and {max_digits}'
      )
    try:
      # Imported here: it takes seconds and is an extra.
      from reasoning_gym.arithmetic import chain_sum as gym
    except ImportError as error:
      raise errors.UserError(
        f'task {self.name!r} needs the package reasoning-gym; '
        'pip install "metastone_jax[gym]"'
      ) from error
    self._datasets = {}
    for split in base.SPLITS:
      hashed_seed = base.Draw(self.name, self.seed, split).below(2**64)
      self._datasets[split] = gym.ChainSumDataset(
        gym.ChainSumConfig(
          min_terms=min_terms,
          max_terms=max_terms,
          min_digits=min_digits,
          max_digits=max_digits,
          seed=hashed_seed,
          size=2**62,
        )
      )

  def _candidate(self, split, index, attempt):
    # Each index owns a block of items, one for each attempt.
    item = self._datasets[split][index * base.MAX_ATTEMPTS + attempt]
    return base.Problem(
      task=self.name,
      id=f'{self.name}/{self.seed}/{split}/{index}',
      question=item['question'],
      answer=item['answer'],
      data={'expression': item['metadata']['expression']},
    )

  def _split_key(self, problem):
    terms = sorted(_signed_terms(problem.data['expression']))
    return f'{self.name}:{terms}'

  def demonstration(self, problem: base.Problem) -> str:
    """Running sums, one step an operator: " 4 - 1 is 3.\\n\\n"."""
    first, *rest = _signed_terms(problem.data['expression'])
    total = int(first)
    thinking = ''
    for term in rest:
      left, total = total, total + int(term)
      thinking += f' {left} {term[0]} {term[1:]} is {total}.\n\n'
    return templates.render_response(thinking, str(total))

  def verify(self, problem: base.Problem, response_text: str) -> base.Verdict:
    """Right iff the last box holds the sum, by both verifiers.

    Args:
      problem: of this task.
      response_text: what follows the prompt.

    Returns:
      The verdict; the answer key is the integer in plain digits.
    """
    content = base.boxed_answer(response_text)
    value = None if content is None else parse_integer(content)
    if value is None:
      return base.UNPARSED
    expected = sum(
      int(term) for term in _signed_terms(problem.data['expression'])
    )
    # The verifier reads only the oracle answer of the entry it is given.
    gym_score = self._datasets['train'].score_answer(
      str(value), {'answer': problem.answer}
    )
    right = value == expected and gym_score == 1.0
    return base.Verdict(reward=float(right), parsed=True, answer_key=str(value))


def parse_integer(text: str) -> int | None:
  """Reads "12", "-12", "+12", "- 12" or "12.0"; None for anything else.

  Args:
    text: the content of a box.

  Returns:
    The integer, of at most twelve digits.
  """
  text = text.strip(' \t\n').replace('\N{MINUS SIGN}', '-')
  sign = -1 if text.startswith('-') else 1
  if text[:1] in ('+', '-'):
    text = text[1:].lstrip(' ')
  whole, _, zeros = text.partition('.')
  if not 0 < len(whole) <= _MAX_DIGITS or not _DIGITS.issuperset(whole):
    return None
  if len(zeros) > _MAX_DIGITS or zeros.strip('0'):
    return None
  return sign * int(whole)


def _signed_terms(expression: str) -> list[str]:
  """'4 - 1 - 7' -> ['+4', '-1', '-7']."""
  pieces = expression.split()
  operators = ['+', *pieces[1::2]]
  return [o + n for o, n in zip(operators, pieces[0::2], strict=True)]
