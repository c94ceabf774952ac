"""Qwen3's tokenizer, against the tokenizers package and transformers."""

import json
import random
import unicodedata

import pytest
import tokenizers

from metastone_jax.data import tokenizer as tokenizer_lib
from tests.data import real_files, texts

SPECIALS = (
  '<|im_start|>',
  '<|im_end|>',
  '<|endoftext|>',
  '<think>',
  '</think>',
  '<tool_call>',
)
COUNT = 1000


@pytest.fixture(scope='module')
def folder():
  return real_files.qwen()


@pytest.fixture(scope='module')
def qwen(folder):
  return tokenizer_lib.Tokenizer.from_folder(folder)


@pytest.fixture(scope='module')
def samples():
  found = texts.strings(COUNT, specials=SPECIALS)
  assert len(set(found)) > 0.9 * COUNT
  assert sum(any(s in text for s in SPECIALS) for text in found) > 300
  return found


def test_ids(qwen):
  assert qwen.vocab_size == 151669
  assert (qwen.eos_id, qwen.pad_id) == (151645, 151643)
  assert (qwen.think_start_id, qwen.think_end_id) == (151667, 151668)
  assert qwen.step_ids() == (382,)
  assert qwen.find_step_marks() == ('.\n\n', '\n\n', '.\n', '\n')


def test_thirty_tokens_end_in_a_mark(folder, qwen):
  library = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  # In byte-level vocabularies a line break is spelled Ċ.
  ending = [
    i for token, i in library.get_vocab().items() if token.endswith('.ĊĊ')
  ]
  assert len(ending) == 30
  assert qwen.step_ids_ending('.\n\n') == tuple(sorted(ending))
  assert {382, 3593, 29562} <= set(ending)


def test_encoding_is_the_library_s(folder, qwen, samples):
  library = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  ids = qwen.encode_batch(samples)
  for text, found in zip(samples, ids, strict=True):
    assert found == library.encode(text, add_special_tokens=False).ids, text
    assert qwen.encode(text) == found
    assert qwen.decode(found) == unicodedata.normalize('NFC', text)


@pytest.mark.parametrize('name', ['AutoTokenizer', 'PreTrainedTokenizerFast'])
def test_encoding_is_that_of_transformers(folder, qwen, samples, name):
  transformers = pytest.importorskip('transformers', reason='extra "test"')
  theirs = getattr(transformers, name).from_pretrained(str(folder))
  rng = random.Random(0)
  for text in samples:
    ids = qwen.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False), text
    assert qwen.decode(ids) == theirs.decode(ids), text
    row = rng.choices(range(qwen.vocab_size), k=10)
    assert qwen.decode(row) == theirs.decode(row)
  assert (qwen.eos_id, qwen.pad_id) == (
    theirs.eos_token_id,
    theirs.pad_token_id,
  )


def test_without_added_tokens_of_its_own(tmp_path, folder, qwen, samples):
  """tokenizer_config.json lists the think tags, tokenizer.json does not."""
  tree = json.loads((folder / 'tokenizer.json').read_text(encoding='utf-8'))
  tree['added_tokens'] = [t for t in tree['added_tokens'] if t['special']]
  (tmp_path / 'tokenizer.json').write_text(json.dumps(tree))
  bare = tokenizer_lib.Tokenizer.from_folder(tmp_path, eos_token='<|im_end|>')
  assert not bare.has_think_tags and len(bare.encode('<think>')) == 3
  config = (folder / 'tokenizer_config.json').read_text(encoding='utf-8')
  (tmp_path / 'tokenizer_config.json').write_text(config)
  whole = tokenizer_lib.Tokenizer.from_folder(tmp_path)
  assert (whole.think_start_id, whole.think_end_id) == (151667, 151668)
  assert whole.encode_batch(samples) == qwen.encode_batch(samples)
