"""What the text of a mathematical answer says, as a tree.

LaTeX or plain text is brought into one spelling and taken apart at its
outermost commas and brackets: lists ("1, 2", "1 and 2", "1 \\pm 2"), sets,
tuples, intervals, unions, matrices, ratios, "x = 3", "1 < x \\le 2", words.
What is left is a number, read exactly (`math_number`), or an expression, which
is for `math_symbolic` to judge. So a computer algebra system never decides what
a comma or a bracket means, and most answers never meet one.

Linear work on any input of up to `MAX_CHARACTERS`; longer ones are not read.
"""

import dataclasses
import fractions
import functools
import re
from collections.abc import Callable

from metastone_jax.tasks import boxed
from metastone_jax.tasks.verifiers import math_number

MAX_CHARACTERS = 2000
_MAX_DEPTH = 8
_MAX_BRACKETS = 12
_MAX_PARTS = 64

# Kinds of answers whose parts have no order.
UNORDERED = ('list', 'set', 'union')


@dataclasses.dataclass(frozen=True)
class Answer:
  """One answer, or a part of one.

  Attributes:
    kind: 'number', 'expression', 'equation', 'words', or a container: 'list'
      (bare commas), 'set', 'union', 'ratio', 'matrix RxC', or its brackets:
      '()', '[]', '(]', '[)'.
    text: all of it in one spelling.
    name: of what it is the value ("x" in "x = 3"); '' if not said.
    value: of a number, without its unit.
    unit: of a number or expression; '%' is one here.
    body: an expression without name and unit.
    parts: of a container, in the order in which they stand.
    also: values that a chain "x = 1 + 1 = 2" claims to be equal to it.
    equation: the whole "y = 2x + 1", where it is one.
  """

  kind: str
  text: str
  name: str = ''
  value: fractions.Fraction | None = None
  unit: str = ''
  body: str = ''
  parts: tuple['Answer', ...] = ()
  also: tuple['Answer', ...] = ()
  equation: str = ''

  @property
  def key(self) -> str:
    """Canonical text: numbers, lists, sets and tuples of equal values agree.

    The name is left out, the unit is not; expressions keep their spelling.
    """
    if self.kind == 'number':
      return f'{self.value} {self.unit}'.rstrip()
    if self.kind == 'words':
      return self.text
    if not self.parts:
      return f'{self.body} {self.unit}'.rstrip()
    keys = [(f'{p.name}=' if p.name else '') + p.key for p in self.parts]
    if self.kind in UNORDERED:
      kind = 'union' if self.kind == 'union' else 'set'
      return f'{kind}{{{"; ".join(sorted(keys))}}}'
    return f'{self.kind}{{{"; ".join(keys)}}}'


@functools.lru_cache(maxsize=4096)
def read_answer(text: str) -> Answer | None:
  """The answer that a text states; None if it is too long or malformed.

  Args:
    text: the content of a box, or a reference, with or without $ around it.
  """
  if len(text) > MAX_CHARACTERS:
    return None
  if '\\boxed' in text:
    text = boxed.last_boxed(text) or ''
  text = normalise(text)
  if not text or not _balanced(text):
    return None
  return _read(text, 0)


# One spelling.

_CHARACTERS = str.maketrans(
  {
    '\N{MINUS SIGN}': '-',
    '\N{EN DASH}': '-',
    '\N{FULLWIDTH HYPHEN-MINUS}': '-',
    '\N{MULTIPLICATION SIGN}': r'\times ',
    '\N{MIDDLE DOT}': r'\cdot ',
    '\N{DOT OPERATOR}': r'\cdot ',
    '\N{DIVISION SIGN}': '/',
    '\N{DIVISION SLASH}': '/',
    '\N{FRACTION SLASH}': '/',
    '\N{GREEK SMALL LETTER PI}': r'\pi ',
    '\N{GREEK SMALL LETTER THETA}': r'\theta ',
    '\N{INFINITY}': r'\infty ',
    '\N{SQUARE ROOT}': r'\sqrt ',
    '\N{DEGREE SIGN}': r'^\circ ',
    '\N{UNION}': r'\cup ',
    '\N{EMPTY SET}': r'\emptyset ',
    '\N{PLUS-MINUS SIGN}': r'\pm ',
    '\N{ELEMENT OF}': r'\in ',
    '\N{LESS-THAN OR EQUAL TO}': r'\le ',
    '\N{GREATER-THAN OR EQUAL TO}': r'\ge ',
    '\N{NOT EQUAL TO}': r'\ne ',
    '\N{ALMOST EQUAL TO}': r'\approx ',
    '\N{SUPERSCRIPT TWO}': '^2',
    '\N{SUPERSCRIPT THREE}': '^3',
    '\N{VULGAR FRACTION ONE HALF}': r'\frac{1}{2}',
    '\N{VULGAR FRACTION ONE QUARTER}': r'\frac{1}{4}',
    '\N{VULGAR FRACTION THREE QUARTERS}': r'\frac{3}{4}',
    '\N{IDEOGRAPHIC COMMA}': ',',
    '\N{IDEOGRAPHIC FULL STOP}': '.',
    '\N{IDEOGRAPHIC SPACE}': ' ',
    '\N{NO-BREAK SPACE}': ' ',
    '~': ' ',
    # Fullwidth forms of ASCII.
    **{chr(0xFEE0 + c): chr(c) for c in range(0x21, 0x7F) if c != 0x2D},
  }
)
_RULES = [
  (re.compile(pattern), new)
  for pattern, new in (
    (r'\\\$', '\x00'),  # a dollar, not a delimiter
    (r'\$|(?<!\\)\\[()\[\]]', ' '),
    ('\x00', '$'),
    (r'\*\*|`', ' '),
    (r'\\(?:left|right|[bB]igg?[lrm]?|mleft|mright)(?![a-zA-Z])\.?', ''),
    (r'\\(?:displaystyle|textstyle|limits)(?![a-zA-Z])', ' '),
    (r'(?<!\\)\\[,;: ]|\\q?quad(?![a-zA-Z])|\\thinspace(?![a-zA-Z])', ' '),
    (r'(?<!\\)\\!', ''),
    (r'\{ ?, ?\}', ','),
    (r'\\[dtc]frac(?![a-zA-Z])', r'\\frac'),
    (r'\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf)|mbox|operatorname)'
     r' ?(?=\{)', r'\\text'),
    (r'\\text\{ ?,? ?(?:and|or) ?\}', ' and '),
    (r'\\text\{ *\}', ' '),
    (r'\\text\{([-+0-9., ]+)\}', r'\1'),
    (r'\\leq(?:slant)?(?![a-zA-Z])', r'\\le'),
    (r'\\geq(?:slant)?(?![a-zA-Z])', r'\\ge'),
    (r'\\neq(?![a-zA-Z])', r'\\ne'),
    (r'\\lt(?![a-zA-Z])', '<'),
    (r'\\gt(?![a-zA-Z])', '>'),
    (r'<=', r'\\le '),
    (r'>=', r'\\ge '),
    (r'\\varnothing(?![a-zA-Z])|\\\{ *\\\}', r'\\emptyset'),
    (r'\\degree(?![a-zA-Z])', r'^\\circ'),
    (r'\\[lr]brace(?![a-zA-Z])',
     lambda found: '\\{' if found[0][1] == 'l' else '\\}'),
    (r'\\lbrack(?![a-zA-Z])', '['),
    (r'\\rbrack(?![a-zA-Z])', ']'),
    (r'\\langle(?![a-zA-Z])', '('),
    (r'\\rangle(?![a-zA-Z])', ')'),
    (r'(?<![\\a-zA-Z])pi(?![a-zA-Z])', r'\\pi'),
    (r'(?<![\\a-zA-Z])inf(?:inity)?(?![a-zA-Z])', r'\\infty'),
    (r'(?<![\\a-zA-Z])sqrt ?\(([^()]*)\)', r'\\sqrt{\1}'),
    (r'\+ ?\\infty', r'\\infty'),
    (r'\\%| ?\\text\{ ?(?:percent|%) ?\}', '%'),
    (r' ?(?<![a-zA-Z])percent(?![a-zA-Z])', '%'),
    (r'\s+', ' '),
  )
]  # fmt: skip
_ENDS = ' .,;:!。，；'


def normalise(text: str) -> str:
  """One spelling of what LaTeX and Unicode write in many ways.

  Args:
    text: an answer.
  """
  text = text.translate(_CHARACTERS)
  for pattern, new in _RULES:
    text = pattern.sub(new, text)
  text = text.strip(' ').rstrip(_ENDS if not text.endswith('!') else ' ')
  return text.lstrip(' ,;')


def compact(text: str) -> str:
  """Without blanks and braces that mean nothing: equal texts, equal answers."""
  text = re.sub(r'(?<![0-9A-Za-z.]) | (?![0-9A-Za-z.])', '', text)
  text = re.sub(r'(\\[a-zA-Z]+) (?=[0-9])', r'\1', text)
  text = re.sub(r'\\frac ?(\d) ?(\d)', r'\\frac{\1}{\2}', text)
  text = re.sub(r'\\sqrt ?(\d)', r'\\sqrt{\1}', text)
  return re.sub(r'([\^_])\{([0-9A-Za-z])\}', r'\1\2', text)


def _balanced(text: str) -> bool:
  """Whether braces close, and brackets do not stand in too many others."""
  depth = braces = 0
  for found in _TOKEN.finditer(text):
    token = found[0]
    depth += (token in _OPEN) - (token in _CLOSE)
    braces += (token == '{') - (token == '}')
    if braces < 0 or depth > _MAX_BRACKETS:
      return False
  return braces == 0


# Taking it apart.

_OPEN, _CLOSE = ('(', '[', '{', '\\{'), (')', ']', '}', '\\}')
_TOKEN = re.compile(r'\\(?:[a-zA-Z]+|.)|.', re.DOTALL)
_SEPARATOR = re.compile(r',|;| and (?=.)| or (?=.)')
_NAME = re.compile(
  r'(?:[A-Za-z]|\\[a-zA-Z]+)(?: ?_ ?(?:\w|\{ ?\w+ ?\}))?\'*'
  r'(?: ?\( ?[a-z](?: ?, ?[a-z])* ?\))?'
)
_LONG_NAME = re.compile(
  r'(?:\\(?:angle|triangle|overline|text) ?)?\{? ?[A-Za-z][A-Za-z ]{0,20}\}?'
)
_NO_NAME = re.compile(r'\\(?:pi|infty|frac|sqrt|emptyset)')
_MATRIX = re.compile(r'\\begin ?\{([pb]?)matrix\}(.*)\\end ?\{\1matrix\}')
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_SHORT_WORDS = frozenset('yes no true false odd even none'.split())


def _tokens(text: str):
  """(token, where it stands, depth of brackets around it)."""
  depth = 0
  for found in _TOKEN.finditer(text):
    token = found[0]
    if token in _CLOSE:
      depth -= 1
    yield token, found.start(), depth
    if token in _OPEN:
      depth += 1


def _split(text: str, separates: Callable[[str], bool]) -> list[str]:
  """Pieces between the tokens that stand outside all brackets."""
  pieces, start = [], 0
  for token, place, depth in _tokens(text):
    if depth == 0 and separates(token):
      pieces.append(text[start:place].strip())
      start = place + len(token)
  return [*pieces, text[start:].strip()]


def _items(text: str) -> list[str]:
  """Pieces between commas, semicolons, "and" and "or" outside brackets."""
  outside = [depth for _, place, depth in _tokens(text)]
  places = [place for _, place, _ in _tokens(text)]
  depth_at = dict(zip(places, outside, strict=True))
  pieces, start = [], 0
  for found in _SEPARATOR.finditer(text):
    if depth_at.get(found.start(), 1) == 0:
      pieces.append(text[start : found.start()].strip())
      start = found.end()
  pieces.append(text[start:].strip())
  # "1, 2, and 3" has an empty piece between its comma and its "and".
  return [piece for piece in pieces if piece]


def _inside(text: str) -> tuple[str, str, str] | None:
  """(opening, content, closing) where one pair of brackets holds it all."""
  tokens = list(_tokens(text))
  first, last = tokens[0][0], tokens[-1][0]
  if first not in _OPEN or last not in _CLOSE or len(tokens) < 2:
    return None
  if any(depth < 1 for _, _, depth in tokens[1:-1]):
    return None
  return first, text[len(first) : -len(last)].strip(), last


def _read(text: str, depth: int) -> Answer | None:
  if not text or depth > _MAX_DEPTH:
    return None
  value = math_number.read_number(text)
  if value is not None:
    return Answer('number', compact(text), value=value)
  if found := _relation(text, depth):
    return found
  if found := _container(text, depth):
    return found
  return _scalar(text)


def _several(kind: str, text: str, pieces: list[str], depth: int):
  if len(pieces) > _MAX_PARTS:
    return None
  parts = [_read(piece, depth + 1) for piece in pieces]
  if not parts or None in parts:
    return None
  return Answer(kind, compact(text), parts=tuple(parts))


def _relation(text: str, depth: int) -> Answer | None:
  """ "x = 3", "x \\in S", "1 < x \\le 2", "a = b + c"; None if it is none."""
  if len(_items(text)) > 1:
    return None  # a list of them
  pieces = _split(text, lambda token: token == '\\approx')
  if len(pieces) > 1:  # what is exact stands first
    return _read(pieces[0], depth + 1)
  pieces = _split(text, lambda token: token == '\\in')
  if len(pieces) == 2 and _is_name(pieces[0]):
    found = _read(pieces[1], depth + 1)
    return found and dataclasses.replace(found, name=compact(pieces[0]))
  pieces = _split(text, lambda token: token == '=')
  if len(pieces) > 1:
    return _equation(text, pieces, depth)
  return _inequality(text, depth)


def _is_name(text: str) -> bool:
  if _NO_NAME.match(text):
    return False
  return bool(_NAME.fullmatch(text) or _LONG_NAME.fullmatch(text))


def _equation(text: str, pieces: list[str], depth: int) -> Answer | None:
  name = pieces.pop(0) if _is_name(pieces[0]) else ''
  values = [_read(piece, depth + 1) for piece in pieces]
  if None in values:
    return None
  letters = bool(_letters(pieces[0]))
  if not name and letters:
    whole = compact(text)
    return Answer('equation', whole, body=whole, equation=whole)
  *also, last = values
  return dataclasses.replace(
    last, name=compact(name), also=tuple(also), equation=compact(text)
  )


def _letters(text: str) -> set[str]:
  return set(re.findall(r'[A-Za-z]', re.sub(r'\\[a-zA-Z]+', '', text)))


_LESS, _MORE = {'<': False, '\\le': True}, {'>': False, '\\ge': True}


def _inequality(text: str, depth: int) -> Answer | None:
  """A chain of < and <= (or > and >=) around one name, as an interval."""
  signs = [
    token
    for token, _, level in _tokens(text)
    if level == 0 and (token in _LESS or token in _MORE)
  ]
  if not signs:
    return None
  pieces = _split(text, lambda token: token in _LESS or token in _MORE)
  if all(sign in _MORE for sign in signs):
    pieces, signs = pieces[::-1], signs[::-1]
  elif not all(sign in _LESS for sign in signs):
    return None
  closed = [{**_LESS, **_MORE}[sign] for sign in signs]
  if len(pieces) == 3 and _is_name(pieces[1]):
    low, name, high = pieces
  elif len(pieces) == 2 and _is_name(pieces[0]):
    (name, high), low, closed = pieces, '-\\infty', [False, *closed]
  elif len(pieces) == 2 and _is_name(pieces[1]):
    (low, name), high, closed = pieces, '\\infty', [*closed, False]
  else:
    return None
  found = _several(
    f'{"[" if closed[0] else "("}{"]" if closed[1] else ")"}',
    text,
    [low, high],
    depth,
  )
  return found and dataclasses.replace(found, name=compact(name))


def _container(text: str, depth: int) -> Answer | None:
  if found := _MATRIX.fullmatch(text):
    rows = [row.split('&') for row in found[2].split('\\\\') if row.strip()]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
      return None
    cells = [cell.strip() for row in rows for cell in row]
    return _several(f'matrix {len(rows)}x{len(rows[0])}', text, cells, depth)
  pieces = _split(text, lambda token: token == '\\cup')
  if len(pieces) > 1:
    return _several('union', text, pieces, depth)
  pieces = _items(text)
  if len(pieces) > 1:
    return _several('list', text, pieces, depth)
  pieces = _split(text, lambda token: token == ':')
  if len(pieces) > 1:
    return _several('ratio', text, pieces, depth)
  pieces = _split(text, lambda token: token == '\\pm')
  if len(pieces) == 2:
    left, right = pieces
    return _several(
      'list',
      text,
      [f'{left} + {right}'.lstrip(' +'), f'{left} - {right}'],
      depth,
    )
  brackets = _inside(text)
  if brackets is None:
    return None
  first, content, last = brackets
  pieces = _items(content)
  if first == '{' and last == '}':  # braces that LaTeX does not show
    return _read(content, depth + 1)
  if first == '\\{' and last == '\\}':
    return _several('set', text, pieces, depth)
  if len(pieces) < 2:
    # Brackets around one thing say nothing.
    return _read(content, depth + 1) if (first, last) == ('(', ')') else None
  if (first, last) == ('(', ')') or (
    first in '([' and last in ')]' and len(pieces) == 2
  ):
    return _several(first + last, text, pieces, depth)
  return _several(f'{first}{last}', text, pieces, depth)


def _scalar(text: str) -> Answer:
  bare = re.sub(r'\\text ?\{ ?([^{}]*)\}', r'\1', text).strip(' .')
  said = bare.strip('() ')
  if _WORDS.fullmatch(said) and (
    '\\text' in text
    or any(len(word) > 3 for word in said.split())
    or said.lower() in _SHORT_WORDS
  ):
    # One letter is a choice or a variable: its case means something.
    said = said if len(said) == 1 else ' '.join(said.lower().split())
    return Answer('words', said)
  body, unit = math_number.split_unit(text)
  value = math_number.read_number(_unwrapped(body)) if unit else None
  kind = 'expression' if value is None else 'number'
  return Answer(kind, compact(text), value=value, unit=unit, body=compact(body))


def _unwrapped(text: str) -> str:
  """Without one pair of brackets or braces around it."""
  brackets = _inside(text) if text else None
  if brackets and brackets[0] in '({' and brackets[2] in ')}':
    return brackets[1]
  return text
