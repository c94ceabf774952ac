"""Numbers and units as answers have them: read exactly, without any algebra.

Most answers to competition problems are one number. It is read here by a small
grammar into a fraction, so that two numbers are compared exactly, in
microseconds, whatever a computer algebra system thinks of them:

  12  -12  012  1,234  1 234  1.5  .5  1/2  \\frac{1}{2}  \\frac12
  2\\frac{1}{2}  2 1/2  1.5 \\times 10^{3}  2^{10}

Nothing else is a number: "3,14" and "1,2" are lists, "1+1" is to be worked out.
"""

import fractions
import re

# Digits of a number, and binary digits of a power: more is not worked out.
_MAX_DIGITS = 400
_MAX_BITS = 4096

_DIGITS = r'(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)'
_DECIMAL = rf'(?:{_DIGITS}(?:\.\d*)?|\.\d+)'
_SIGNED = rf'[+-]? ?{_DECIMAL}'
_ARGUMENT = rf'(?:\{{ ?({_SIGNED}) ?\}}|(\d))'
_FRACTION = re.compile(rf'\\[dtc]?frac ?{_ARGUMENT} ?{_ARGUMENT}')
_SLASH = re.compile(rf'({_DECIMAL}) ?/ ?({_DECIMAL})')
_MIXED = re.compile(
  r'(\d+) ?\\[dtc]?frac ?(?:\{ ?(\d+) ?\}|(\d)) ?(?:\{ ?(\d+) ?\}|(\d))'
  r'|(\d+) (\d+) ?/ ?(\d+)'
)
_EXPONENT = r'\^ ?(?:\{ ?([+-]?\d+) ?\}|(\d))'
_SCIENTIFIC = re.compile(
  rf'({_DECIMAL}) ?(?:\\times|\\cdot|\*) ?10 ?{_EXPONENT}'
)
_POWER = re.compile(rf'(\d+) ?{_EXPONENT}')
_PLAIN = re.compile(_DECIMAL)


def read_number(text: str) -> fractions.Fraction | None:
  """The number that a text is, exactly; None where it is anything else.

  Args:
    text: in the form that `math_answer.normalise` gives.
  """
  text = text.strip()
  if len(text) > _MAX_DIGITS:
    return None
  sign = 1
  if text[:1] in ('+', '-'):
    sign = -1 if text[0] == '-' else 1
    text = text[1:].lstrip()
  value = _unsigned(text)
  return None if value is None else sign * value


def _unsigned(text: str) -> fractions.Fraction | None:
  if _PLAIN.fullmatch(text):
    return _decimal(text)
  if found := _FRACTION.fullmatch(text) or _SLASH.fullmatch(text):
    top, bottom = (_decimal(x) for x in found.groups() if x is not None)
    return top / bottom if bottom else None
  if found := _MIXED.fullmatch(text):
    whole, top, bottom = (int(x) for x in found.groups() if x is not None)
    # 2 7/3 is no mixed number but a product or a slip.
    return whole + fractions.Fraction(top, bottom) if top < bottom else None
  if found := _SCIENTIFIC.fullmatch(text):
    number, exponent = (x for x in found.groups() if x is not None)
    power = _power(10, int(exponent))
    return None if power is None else _decimal(number) * power
  if found := _POWER.fullmatch(text):
    base, exponent = (int(x) for x in found.groups() if x is not None)
    return _power(base, exponent)
  return None


def _decimal(text: str) -> fractions.Fraction:
  text = text.replace(',', '').replace(' ', '').removesuffix('.')
  return fractions.Fraction(text)


def _power(base: int, exponent: int) -> fractions.Fraction | None:
  if base.bit_length() * abs(exponent) > _MAX_BITS:
    return None
  if not base and exponent <= 0:
    return None
  return fractions.Fraction(base) ** exponent


# Units.

_NAMES = {
  'cm': 'cm centimeter centimeters centimetre centimetres cms',
  'mm': 'mm millimeter millimeters millimetre millimetres',
  'm': 'm meter meters metre metres',
  'km': 'km kilometer kilometers kilometre kilometres kms',
  'in': 'in inch inches',
  'ft': 'ft foot feet',
  'yd': 'yd yard yards',
  'mi': 'mi mile miles',
  'g': 'g gram grams',
  'mg': 'mg milligram milligrams',
  'kg': 'kg kilogram kilograms kgs',
  'lb': 'lb lbs pound pounds',
  'oz': 'oz ounce ounces',
  't': 'ton tons tonne tonnes',
  's': 's sec secs second seconds',
  'min': 'min mins minute minutes',
  'h': 'h hr hrs hour hours',
  'd': 'day days',
  'wk': 'week weeks',
  'mo': 'month months',
  'a': 'yr yrs year years',
  'l': 'l liter liters litre litres',
  'ml': 'ml milliliter milliliters millilitre millilitres',
  'gal': 'gallon gallons',
  'mi/h': 'mph',
  'km/h': 'kmh kph',
  'N': 'newton newtons',
  'J': 'joule joules',
  'W': 'watt watts',
  'rad': 'rad radian radians',
  'deg': 'deg degree degrees',
  'dollar': 'dollar dollars usd',
  'cent': 'cent cents',
  'euro': 'euro euros',
  'rupee': 'rupee rupees',
  'unit': 'unit units',
  'digit': 'digit digits',
  'point': 'point points',
  'way': 'way ways',
  'person': 'person people persons',
  'student': 'student students',
  'man': 'man men',
  'woman': 'woman women',
  'child': 'child children',
  'coin': 'coin coins',
  'ball': 'ball balls',
  'apple': 'apple apples',
  'marble': 'marble marbles',
  'card': 'card cards',
  'book': 'book books',
  'square': 'squares',
  'triangle': 'triangles',
  'side': 'side sides',
  'edge': 'edge edges',
  'page': 'page pages',
  'step': 'step steps',
  'time': 'times',
  'integer': 'integer integers',
  'number': 'number numbers',
  'solution': 'solution solutions',
}
_UNITS = {
  word: name for name, words in _NAMES.items() for word in words.split()
}
_CURRENCIES = {'$': 'dollar', '€': 'euro', '£': 'sterling', '¥': 'yen'}
_TAIL = re.compile(
  r'(?P<body>.*?[\d})\]a-z]) ?'
  r'(?:\\text ?\{(?P<text>[^{}]*)\}|(?<=[\d} ])(?P<bare>[A-Za-z][A-Za-z ]+))'
  r' ?(?:\^ ?\{? ?(?P<power>[23]) ?\}?)?'
)
_ANGLE = re.compile(r'(?P<body>.+?) ?\^ ?\{? ?\\circ ?\}?')
_WORDS = re.compile(r'[A-Za-z]+|/|\^ ?\{?[23]\}?|\S')


def split_unit(text: str) -> tuple[str, str]:
  """(the rest, the unit in one spelling; '' where there is none).

  Only words that are known as units count: "5 million" has none. Where letters
  stand bare ("5 cm", not "5 \\text{ cm}"), single letters are variables.

  Args:
    text: in the form that `math_answer.normalise` gives.
  """
  if text.endswith('%'):
    return text[:-1].rstrip(), '%'
  sign = text[:1] if text[:1] in '+-' else ''
  behind = text[len(sign) :].lstrip()
  if behind[:1] in _CURRENCIES:
    return sign + behind[1:].lstrip(), _CURRENCIES[behind[0]]
  if found := _ANGLE.fullmatch(text):
    return found['body'], 'deg'
  found = _TAIL.fullmatch(text) if len(text) <= _MAX_DIGITS else None
  if not found:
    return text, ''
  phrase = found['text'] if found['bare'] is None else found['bare']
  unit = _unit(phrase, bare=found['bare'] is not None)
  if not unit:
    return text, ''
  if found['power']:
    unit += found['power']
  return found['body'].rstrip(), unit


def _unit(phrase: str, bare: bool) -> str:
  """One spelling of a phrase of units; '' if a word of it is no unit."""
  names, power = [], ''
  for word in _WORDS.findall(phrase):
    low = word.lower()
    if low in ('square', 'sq') and not names:
      power = '2'
    elif low in ('cubic', 'cu') and not names:
      power = '3'
    elif low in ('/', 'per'):
      names.append('/')
    elif word[0] == '^' and names:
      names[-1] += word.strip('^ {}')
    elif low == 'percent':
      names.append('%')
    elif low in _UNITS and not (bare and len(word) == 1):
      names.append(_UNITS[low] + power)
      power = ''
    elif word != '.' or not names:
      return ''
  if power or not names or names[0] == '/' or names[-1] == '/':
    return ''
  return ''.join(names)
