"""Whether two expressions are equal: math-verify's word, checked by numbers.

math-verify (with sympy) reads LaTeX and knows algebra, but says "equal" too
often for a reward: it rounds to six decimals, drops tiny differences, ignores
the case of letters, and works out whatever is written. Here it is asked only
about two single expressions, of the same letters and the same kind of
operations, and a second judge must agree: their values at random points to 100
digits.

It may run for ever or take all memory on hostile input: call it in a process
of its own (`tasks.pool`). Its own time-outs by signal are off.
"""

import fractions
import functools
import logging
import re

# Where letters get values: nothing special, and not all of one sign.
_POINTS = ('1.2345678987', '-0.7182818459', '2.9173213569')
_DIGITS = 120
_TOLERANCE = '1e-100'

_COMMAND = re.compile(r'\\[a-zA-Z]+')
_LETTER = re.compile(r'[A-Za-z]')
# Operations that an answer may hold only where the reference holds some of the
# same group: else the answer may be the question itself, not worked out.
_GROUPS = tuple(
  re.compile(pattern)
  for pattern in (
    r'\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![a-z])',
    r'\\(?:log|ln|lg|exp)(?![a-z])',
    r'\\sum|\\prod|\\int|\\oint|\\lim|\\partial|\\mathrm\{d\}',
    r'\\binom|\\choose|\\text\{C\}|!',
    r'\\(?:gcd|lcm|max|min|det|deg|bmod|pmod|mod)|\\text\{(?:lcm|mod)\}',
    r'\\[lr]?floor|\\[lr]?ceil|\\lvert|\\rvert|\|',
    r'\\begin',
  )
)
_EXPONENT = re.compile(r'\^ ?(?:\{([^{}]*)\}|(.))')
_MAX_EXPONENT = 1000
_MAX_POWERS = 16
_MAX_NUMBER = 60  # digits


def equal(gold: str, answer: str) -> bool:
  """Whether an expression is equal to that of the reference.

  Args:
    gold: of the reference, as `math_answer` leaves it.
    answer: of a response; hostile.

  Returns:
    False wherever it cannot be shown.
  """
  if not _comparable(gold, answer):
    return False
  left, right = _parse(gold), _parse(answer)
  if left is None or right is None:
    return False
  left, right = _exact(left), _exact(right)
  if not _agree(left, right):  # first: algebra may take long to say no
    return False
  from math_verify import verify

  return bool(verify(left, right, timeout_seconds=None, raise_on_error=False))


def same_equation(gold: str, answer: str) -> bool:
  """Whether "L = R" holds for the same values of its letters as the other.

  Shown by left minus right: one is a constant times the other.

  Args:
    gold: of the reference.
    answer: of a response; hostile.
  """
  sides = [text.split('=') for text in (gold, answer)]
  if any(len(pair) != 2 for pair in sides) or not _comparable(gold, answer):
    return False
  parsed = [[_parse(side) for side in pair] for pair in sides]
  if any(side is None for pair in parsed for side in pair):
    return False
  one, other = (_exact(left) - _exact(right) for left, right in parsed)
  names = sorted({symbol.name for symbol in one.free_symbols})
  if names != sorted({symbol.name for symbol in other.free_symbols}):
    return False
  ratios = []
  for shift in range(3):
    values = [_value(side, _point(names, shift)) for side in (one, other)]
    if None in values or not all(values):
      return False
    ratios.append(values[0] / values[1])
  return all(_near(ratio, ratios[0]) for ratio in ratios)


def value_key(gold: str, answer: str) -> str | None:
  """A key that equal closed forms share: 15 digits; None if it has letters.

  Args:
    gold: of the reference: what cannot be compared with it is not worked out.
    answer: of a response; hostile.
  """
  if not _comparable(gold, answer):
    return None
  found = _parse(answer)
  if found is None or getattr(found, 'free_symbols', True):
    return None
  value = _value(_exact(found), {})
  return None if value is None else f'~{value.n(15)}'


def explosive(text: str) -> bool:
  """Whether working it out could take for ever: towers, huge powers."""
  if len(re.findall(r'\d', text)) > _MAX_NUMBER * 4:
    return True
  if re.search(rf'\d{{{_MAX_NUMBER},}}', text) or re.search(r'\d{4,} ?!', text):
    return True
  # A factorial of a factorial, in brackets or not.
  if re.search(r'![ )}\]]*!', text) or text.count('^') > _MAX_POWERS:
    return True
  for found in _EXPONENT.finditer(text):
    inside = found[1] if found[1] is not None else found[2]
    numbers = re.findall(r'\d+', inside)
    if any(int(number) > _MAX_EXPONENT for number in numbers):
      return True
    # A power of a power, however it is bracketed: 2^2^2, (2^2)^2.
    if numbers and text[found.end() :].lstrip(' })').startswith('^'):
      return True
  return bool(re.search(r'\^ ?\{[^{}]*\d ?\^', text))


def _comparable(gold: str, answer: str) -> bool:
  """Cheap necessary conditions, without any algebra."""
  if explosive(answer) or explosive(gold):
    return False
  if _letters(gold) != _letters(answer):
    return False
  # 11_2 is a number in base 2, which math-verify does not know.
  if any(re.search(r'\d ?_', text) for text in (gold, answer)):
    return False
  return all(
    group.search(gold) or not group.search(answer) for group in _GROUPS
  )


def _letters(text: str) -> set[str]:
  """Variables, by case; e is a number."""
  greek = {
    command
    for command in _COMMAND.findall(text)
    if command.removeprefix('\\') in _GREEK
  }
  bare = re.sub(r'\\text ?\{[^{}]*\}', '', text)
  return greek | (set(_LETTER.findall(_COMMAND.sub(' ', bare))) - {'e'})


_GREEK = frozenset(
  'alpha beta gamma delta epsilon varepsilon zeta eta theta kappa lambda mu nu '
  'xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma '
  'Phi Psi Omega'.split()
)


@functools.lru_cache(maxsize=256)
def _parse(text: str):
  """The sympy expression; None where math-verify cannot read it."""
  # It warns that its time-outs are off, which they are to be.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  logging.getLogger('latex2sympy2_extended').setLevel(logging.ERROR)
  from latex2sympy2_extended import NormalizationConfig
  from math_verify import LatexExtractionConfig, parse
  from sympy import Expr

  config = LatexExtractionConfig(
    boxed_match_priority=0,
    normalization_config=NormalizationConfig(
      basic_latex=True,
      units=False,
      malformed_operators=True,
      nits=False,
      boxed='last',
    ),
  )
  found = parse(
    f'\\boxed{{{text}}}',
    [config],
    fallback_mode='no_fallback',
    extraction_mode='first_match',
    parsing_timeout=None,
  )
  if len(found) != 1 or not isinstance(found[0], Expr):
    return None
  return found[0]


def _exact(expression):
  """With decimals as the fractions that they are: 2.5 is 5/2."""
  import sympy

  return expression.xreplace(
    {
      number: sympy.Rational(fractions.Fraction(str(number)))
      for number in expression.atoms(sympy.Float)
    }
  )


def _agree(left, right) -> bool:
  """Whether the two have the same values wherever they are looked at."""
  names = sorted({symbol.name for symbol in left.free_symbols})
  if names != sorted({symbol.name for symbol in right.free_symbols}):
    return False
  shared = 0
  for shift in range(3 if names else 1):
    point = _point(names, shift)
    one, other = _value(left, point), _value(right, point)
    if one is None or other is None:
      if (one is None) != (other is None):
        return False
      continue
    shared += 1
    if not _near(one, other):
      return False
  return shared > 0


def _point(names, shift: int):
  """A value for every letter."""
  import sympy

  return {
    name: sympy.Rational(_POINTS[(i + shift) % 3]) + sympy.Rational(i, 7)
    for i, name in enumerate(names)
  }


def _near(one, other) -> bool:
  """Equal to 100 digits; a zero may come out as a tiny number."""
  import sympy

  scale = max(abs(one), abs(other), sympy.Float('1e-1000', _DIGITS))
  return bool(abs(one - other) <= sympy.Float(_TOLERANCE, _DIGITS) * scale)


def _value(expression, point):
  """A finite number to 120 digits, or None."""
  import sympy

  try:
    expression = expression.subs(
      {s: point[s.name] for s in expression.free_symbols}
    ).doit()
    value = expression.evalf(_DIGITS, maxn=1000)
  except Exception:  # sympy raises whatever it likes on odd input
    return None
  real, imaginary = value.as_real_imag()
  if not (real.is_Number and imaginary.is_Number):
    return None
  if not (real.is_finite and imaginary.is_finite):
    return None
  return sympy.Add(real, sympy.I * imaginary) if imaginary else real
