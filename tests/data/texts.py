"""Many strings in many scripts, the same ones each time."""

import random

_FRAGMENTS = (
  'The quick brown fox jumps over the lazy dog, twice.',
  " don't we'll it's O'Neill's naïve café",
  'Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.',
  'Die Straßenverkehrsordnung gilt für alle; Größe: 12,5 µm.',
  '今天天气很好，我们去公园散步吧。',
  '求解方程：x² + 3x − 10 = 0，答案是２或－５。',
  '吾輩は猫である。名前はまだ無い。',
  'カタカナとひらがな、ｶﾀｶﾅも。',
  'السلام عليكم ورحمة الله وبركاته',
  'العدد ١٢٣ أكبر من ٤٥',
  'Съешь же ещё этих мягких французских булок, да выпей чаю.',
  '한국어 문장도 있습니다. नमस्ते दुनिया สวัสดี שלום',
  '👍🏽👩‍👩‍👧‍👦🇩🇪🙂 ☃ \U0001f9ee',
  'def f(x):\n\treturn {"a": [1, 2, x ** 3]}  # done\n',
  '<div class="a&b">x &lt; y</div>\r\n',
  'for (int i = 0; i < n; ++i) { s += a[i]; }',
  r'\frac{1}{2} \le \sum_{k=1}^{n} k^2 = \boxed{42}',
  '∀ε>0 ∃δ: |x−a|<δ ⇒ |f(x)−f(a)|<ε',
  'So 3 * 7 = 21.\n\nThen 21 - 4 = 17.\n\n',
  '(see above).\n\n"Yes."\n\n[1].\n\n\n',
  '1234567890 3.14159 1e-7 0xDEADBEEF',
  '   ',
  '\n',
  '\n\n\n',
  '\t\t ',
  ' \u00a0\u2003\u3000\u200b',
  '\x00\x01\x07\x1b\x7f\x85',
  '\u2028\u2029\ufeff\ufffd',
  # Decomposed accents, and letters that are the same to a normaliser.
  'e\u0301a\u0308 \ufb01 ① \u212b K',
  '▁ <0x0A> <unk_> Ġ Ċ',
)

_BLOCKS = (
  (0x20, 0x7E),
  (0xA0, 0x17F),
  (0x370, 0x4FF),
  (0x5D0, 0x6FF),
  (0x900, 0xE7F),
  (0x2000, 0x2BFF),
  (0x3040, 0x30FF),
  (0x4E00, 0x9FFF),
  (0xAC00, 0xD7A3),
  (0x1F300, 0x1FAFF),
)


def strings(count, *, seed=0, specials=()):
  """`count` strings; about half of them hold special tokens, if any."""
  rng = random.Random(seed)
  texts = ['', ' ', '  a', 'a  ', *_FRAGMENTS]
  while len(texts) < count:
    parts = []
    for _ in range(rng.randint(1, 7)):
      fragment = rng.choice(_FRAGMENTS)
      cut = sorted(rng.choices(range(len(fragment) + 1), k=2))
      start, end = rng.choice(_BLOCKS)
      letters = ''.join(chr(rng.randint(start, end)) for _ in range(4))
      parts += rng.choices(
        [
          fragment,
          fragment[cut[0] : cut[1]],
          letters,
          ' ' * rng.randint(1, 40),
        ],
        k=1,
      )
      if specials and rng.random() < 0.2:
        parts.append(rng.choice(specials))
    texts.append(''.join(parts))
  return texts[:count]


def ascii_strings(count):
  """`count` strings of printable ASCII characters."""
  words = [w for f in _FRAGMENTS for w in f.split() if w.isascii()]
  words = [w for w in words if w.isprintable()]
  rng = random.Random(1)
  return [' '.join(rng.choices(words, k=8)) for _ in range(count)]
