"""SentencePiece models: one trained here, and those of mistral-common."""

import io
import json
import pickle
import random
import string
import sys

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.data import tokenizer as tokenizer_lib
from tests.data import real_files, texts

spm = pytest.importorskip(
  'sentencepiece', reason='extra "sentencepiece" not installed'
)

SPECIALS = ('<s>', '</s>', '<unk>')
COUNT = 1000


@pytest.fixture(scope='module')
def proto():
  """A small model with think tags and a pad piece of its own."""
  out = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(texts.ascii_strings(500)),
    model_writer=out,
    model_type='bpe',
    vocab_size=700,
    byte_fallback=True,
    character_coverage=1.0,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    pad_id=3,
    control_symbols=['<think>', '</think>'],
    minloglevel=2,
  )
  return out.getvalue()


@pytest.fixture(scope='module')
def library(proto):
  return spm.SentencePieceProcessor(model_proto=proto)


def _folder(tmp_path, proto, **files):
  (tmp_path / 'tokenizer.model').write_bytes(proto)
  for name, content in files.items():
    (tmp_path / f'{name}.json').write_text(json.dumps(content))
  return tmp_path


def load(*args, **options):
  return tokenizer_lib.Tokenizer.from_folder(*args, **options)


def added(text, **flags):
  return {'content': text, 'special': True, **flags}


def by_hand(text, specials, first, rest):
  """Ids with special tokens cut out; a second way, one character at a time."""
  ids, start, n = [], 0, 0
  reader = first
  while n < len(text):
    found = max(
      (s for s in specials if text.startswith(s, n)), key=len, default=None
    )
    if found is None:
      n += 1
      continue
    ids += reader.encode(text[start:n]) if n > start else []
    ids.append(specials[found])
    n += len(found)
    start, reader = n, rest
  return ids + (reader.encode(text[start:]) if n > start else [])


def without_blank(proto):
  """The model without its blank before a text, edited as a message."""
  pytest.importorskip('google.protobuf', reason='protobuf not installed')
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString(proto)
  model.normalizer_spec.add_dummy_prefix = False
  return spm.SentencePieceProcessor(model_proto=model.SerializeToString())


def control_ids(library):
  return {
    library.id_to_piece(i): i
    for i in range(library.get_piece_size())
    if library.is_control(i) or library.is_unknown(i)
  }


def test_ids_come_from_the_model(tmp_path, proto, library):
  loaded = load(_folder(tmp_path, proto))
  assert loaded.vocab_size == 700
  assert loaded.special_tokens == {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'unk_token': '<unk>',
    'pad_token': '<pad>',
  }
  assert loaded.stop_ids == (loaded.eos_id,) == (library.eos_id(),)
  assert loaded.pad_id == library.pad_id() == 3
  tags = [library.piece_to_id(tag) for tag in ('<think>', '</think>')]
  assert [loaded.think_start_id, loaded.think_end_id] == tags
  newline = library.piece_to_id('<0x0A>')
  # Alone it is a blank and a line break; inside a text it is one token.
  assert len(loaded.encode('\n')) == 2
  assert loaded.find_step_marks() == ('\n',)
  assert loaded.step_ids('\n') == (newline,)
  assert loaded.step_ids_ending('\n') == (newline,)
  with pytest.raises(errors.UserError, match=r"one token: '\\n'"):
    loaded.step_ids()
  # A letter inside a word, and the same letter after a blank.
  pieces = {library.id_to_piece(i): i for i in range(700)}
  letter = next(c for c in string.ascii_lowercase if f'▁{c}' in pieces)
  assert loaded.id_of(letter) == pieces[letter]
  assert loaded.id_of(f' {letter}') == pieces[f'▁{letter}']
  assert loaded.encode(letter) == [pieces[f'▁{letter}']]
  again = pickle.loads(pickle.dumps(loaded))
  assert again.encode('<s>a') == loaded.encode('<s>a')


def test_plain_text_is_the_library_s(tmp_path, proto, library):
  loaded = load(_folder(tmp_path, proto))
  samples = texts.strings(COUNT)
  assert loaded.encode_batch(samples) == library.encode(samples)
  ids = library.encode(samples)
  assert [loaded.decode(i) for i in ids] == library.decode(ids)


def test_settings_win_over_the_model(tmp_path, proto):
  config = {
    'eos_token': '</think>',
    'pad_token': '<fill>',
    'added_tokens_decoder': {'700': added('<fill>'), '705': added('<fill>2')},
  }
  loaded = load(_folder(tmp_path, proto, tokenizer_config=config))
  assert (loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (5, 700, 706)
  # The longest of several is the one.
  assert loaded.encode('<fill>2<fill>') == [705, 700]
  assert loaded.decode([705, 700]) == '<fill>2<fill>'
  # Ids that no text has are no text, as in a Hugging Face tokenizer.
  assert loaded.decode([701, 705, 9999]) == '<fill>2'
  (tmp_path / 'tokenizer_config.json').unlink()
  _folder(tmp_path, proto, added_tokens={'<fill>': 702})
  assert load(tmp_path).encode('<fill>') == [702]


def test_a_piece_named_as_special_is_cut_out(tmp_path, proto, library):
  pieces = map(library.id_to_piece, range(262, 700))
  name = next(p for p in pieces if len(p) == 2 and p.isalpha())
  text = f'a{name}b {name}{name}<s>'
  config = {'additional_special_tokens': [name]}
  loaded = load(_folder(tmp_path, proto, tokenizer_config=config))
  specials = {**control_ids(library), name: library.piece_to_id(name)}
  expected = by_hand(text, specials, library, library)
  assert loaded.encode(text) == expected
  assert expected.count(specials[name]) == 3
  assert loaded.decode(expected) == text


@pytest.mark.parametrize('legacy', [True, False, None])
def test_special_tokens_are_cut_out(tmp_path, proto, library, legacy):
  config = {} if legacy is None else {'legacy': legacy}
  loaded = load(_folder(tmp_path, proto, tokenizer_config=config))
  rest = without_blank(proto) if legacy is False else library
  specials = control_ids(library)
  assert set(specials) == {*SPECIALS, '<pad>', '<think>', '</think>'}
  samples = texts.strings(COUNT, specials=tuple(specials))
  ids = loaded.encode_batch(samples)
  for text, found in zip(samples, ids, strict=True):
    assert found == by_hand(text, specials, library, rest), text
  # Nothing is lost but the difference between "▁" and a blank.
  blank = [text.replace('▁', ' ') for text in samples]
  assert [loaded.decode(i) for i in ids] == blank
  width = max(map(len, ids))
  rows = np.array([[*i, *[0] * (width - len(i))] for i in ids])
  assert loaded.decode_rows(rows, np.array([len(i) for i in ids])) == blank
  assert any(s in text for s in specials for text in samples[:50])


def test_flags_of_added_tokens(tmp_path, proto, library):
  tokens = {
    '700': added('<l>', lstrip=True),
    '701': added('<r>', rstrip=True),
    '702': added('<w>', single_word=True),
    '703': added(''),  # Means nothing, and must find nothing.
  }
  config = {'added_tokens_decoder': tokens}
  loaded = load(_folder(tmp_path, proto, tokenizer_config=config))
  a, b = library.encode('a'), library.encode('b')
  assert loaded.encode('a \n<l>b') == [*a, 700, *b]
  assert loaded.encode('a<r> \t b') == [*a, 701, *b]
  assert loaded.encode('<w>') == [702]
  assert loaded.encode('a<w>') == library.encode('a<w>')
  assert loaded.encode('a <w> b') == [
    *library.encode('a '),
    702,
    *library.encode(' b'),
  ]


def test_bad_models(tmp_path, proto, monkeypatch):
  for content in (b'', b'garbage', proto[:100]):
    (tmp_path / 'tokenizer.model').write_bytes(content)
    with pytest.raises(errors.UserError, match='no SentencePiece') as info:
      load(tmp_path)
    assert '\n' not in str(info.value)
  _folder(tmp_path, proto)
  # What the import system does when a package is absent.
  monkeypatch.setitem(sys.modules, 'sentencepiece', None)
  with pytest.raises(
    errors.UserError, match=r"pip install 'metastone_jax\[sentencepiece\]'"
  ):
    load(tmp_path)


@pytest.mark.parametrize('version', real_files.MISTRAL)
def test_mistral(version):
  file = real_files.mistral(version)
  loaded = load(file)
  library = spm.SentencePieceProcessor(model_file=str(file))
  specials = control_ids(library)
  samples = [
    t for t in texts.strings(COUNT) if not any(s in t for s in specials)
  ]
  assert len(samples) == COUNT
  ids = library.encode(samples)
  assert loaded.encode_batch(samples) == ids
  assert [loaded.decode(i) for i in ids] == library.decode(ids)
  # Sampled ids follow no rule: runs of any pieces, bytes of half a letter.
  rng = random.Random(0)
  plain = sorted(set(range(library.get_piece_size())) - set(specials.values()))
  for _ in range(COUNT):
    row = rng.choices(plain, k=12) + rng.choices(range(3, 700), k=4)
    row = [i for i in row if i not in specials.values()]
    assert loaded.decode(row) == library.decode(row)
  assert loaded.eos_id == library.eos_id() == 2
  assert not loaded.has_think_tags
  assert loaded.find_step_marks() == ('\n',)
  expected = by_hand('<s>[INST] a\n[/INST]b</s>', specials, library, library)
  assert loaded.encode('<s>[INST] a\n[/INST]b</s>') == expected
  assert (3 in expected and 4 in expected) == ('[INST]' in specials)


@pytest.mark.parametrize('version', real_files.MISTRAL)
@pytest.mark.parametrize('legacy', [True, False])
def test_mistral_special_tokens_as_in_transformers(tmp_path, version, legacy):
  module = pytest.importorskip(
    'transformers.tokenization_utils_sentencepiece',
    reason='extra "test", transformers 5 or later',
  )
  proto = real_files.mistral(version).read_bytes()
  library = spm.SentencePieceProcessor(model_proto=proto)
  specials = control_ids(library)
  folder = _folder(tmp_path, proto, tokenizer_config={'legacy': legacy})
  loaded = load(folder)
  theirs = module.SentencePieceBackend(
    vocab_file=str(folder / 'tokenizer.model'),
    legacy=legacy,
    bos_token='<s>',
    eos_token='</s>',
    unk_token='<unk>',
    extra_special_tokens=[s for s in specials if s not in SPECIALS],
  )
  names = (*SPECIALS, *[s for s in ('[INST]', '[/INST]') if s in specials])
  samples = texts.strings(COUNT, specials=names)
  assert sum(any(s in text for s in names) for text in samples) > 300
  # Without `legacy` this class puts no blank before the first text either,
  # unlike the classes of the models; after a special token they agree.
  start = '' if legacy else '<s>'
  for text in samples:
    expected = theirs.encode(start + text, add_special_tokens=False)
    assert loaded.encode(start + text) == expected, text
