"""The shipped tokenizer and the lookup rules."""

import json
import random

import numpy as np
import pytest
import tokenizers

from metastone_jax import errors
from metastone_jax.data import build_tiny_tokenizer
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.tasks import registry, templates


@pytest.fixture(scope='module')
def tiny():
  return tokenizer_lib.Tokenizer.tiny()


def pieces(tokenizer, text):
  return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def task_or_skip(name):
  if name == 'chain_sum':
    pytest.importorskip('reasoning_gym', reason='extra "gym" not installed')
  return registry.get_task(name, seed=0)


def test_the_committed_files_are_what_the_script_writes():
  built = build_tiny_tokenizer.build()
  folder = build_tiny_tokenizer.FOLDER
  assert {f.name for f in folder.iterdir()} == set(built)
  for name, content in built.items():
    assert (folder / name).read_text() == content


def test_ids(tiny):
  assert tiny.vocab_size < 600
  assert (tiny.pad_id, tiny.eos_id) == (0, 3)
  assert (tiny.think_start_id, tiny.think_end_id) == (4, 5)
  assert tiny.step_ids() == (tiny.id_of('.\n\n'),)
  assert tiny.step_ids(('\n\n', '.\n\n')) == (
    tiny.id_of('\n\n'),
    tiny.id_of('.\n\n'),
  )
  assert tiny.step_ids('.\n\n') == tiny.step_ids()


def test_every_number_is_one_token(tiny):
  ids = {tiny.id_of(f' {n}') for n in range(-99, 100)}
  assert len(ids) == 199


@pytest.mark.parametrize('name', ['signs', 'chain_sum'])
def test_task_texts_are_lossless_and_short(tiny, name):
  task = task_or_skip(name)
  unknown = tiny.encode('\N{SNOWMAN}')[0]
  single = set(build_tiny_tokenizer.CHARACTERS) - set('\n,.:')
  for index in range(300):
    problem = task.problem(index, 'train')
    for text in (
      templates.render_prompt(problem.question),
      task.demonstration(problem),
    ):
      ids = tiny.encode(text)
      assert tiny.decode(ids) == text
      assert unknown not in ids
      # No text of a task falls back to single characters.
      assert not single & set(pieces(tiny, text))


def test_signs_lengths(tiny):
  task = registry.get_task('signs', seed=0)
  for index in range(100):
    problem = task.problem(index, 'train')
    terms = len(problem.data['numbers'])
    prompt = templates.render_prompt(problem.question)
    # 13 for the chat form and the words, then number and comma or stop.
    assert len(tiny.encode(prompt)) == 13 + 2 * terms <= 25
    response = tiny.encode(task.demonstration(problem))
    assert response.count(tiny.id_of('.\n\n')) == terms
    # Five a step, two a term of the answer, five around it.
    assert len(response) == 5 * terms + 2 * terms + 5


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (' + 7 leaves 5.\n\n', [' +', ' 7', ' leaves', ' 5', '.\n\n']),
    (' - 7 leaves -12.\n\n', [' -', ' 7', ' leaves', ' -12', '.\n\n']),
    ('Make -6 using 7, 1.', ['Make', ' -6', ' using', ' 7', ',', ' 1', '.']),
    (' 4 - 1 is 3.\n\n', [' 4', ' -', ' 1', ' is', ' 3', '.\n\n']),
    ('</think>\n\n\\boxed{ 5 }', ['</think>', '\n\n', '\\boxed{', ' 5', ' }']),
    ('<think>\n + 7', ['<think>', '\n', ' +', ' 7']),
    (' 123', [' ', '1', '2', '3']),
    (' -123', [' -', '1', '2', '3']),
    (' -0', [' -', '0']),
    (' 05', [' ', '0', '5']),
    (' 12.5', [' 12', '.', '5']),
    ('5.\n\n\n', ['5', '.\n\n', '\n']),
  ],
)
def test_splitting(tiny, text, expected):
  assert pieces(tiny, text) == expected
  assert tiny.decode(tiny.encode(text)) == text


def test_any_printable_text_is_lossless(tiny):
  rng = random.Random(0)
  alphabet = [*build_tiny_tokenizer.CHARACTERS, *build_tiny_tokenizer.PIECES]
  alphabet += build_tiny_tokenizer.SPECIALS
  for _ in range(500):
    text = ''.join(rng.choices(alphabet, k=rng.randrange(40)))
    assert tiny.decode(tiny.encode(text)) == text


def test_unknown_characters_become_unk(tiny):
  assert tiny.decode(tiny.encode('a\N{SNOWMAN}b')) == 'a<unk>b'
  with pytest.raises(errors.UserError, match='one token'):
    tiny.id_of('\N{SNOWMAN}')


def test_batches_equal_single_calls(tiny):
  texts = [' + 7 leaves 5.\n\n', '', 'Make -6']
  assert tiny.encode_batch(texts) == [tiny.encode(t) for t in texts]
  rows = np.array([[10, 11, 12], [10, 0, 0]])
  assert tiny.decode_rows(rows, np.array([2, 1])) == [
    tiny.decode([10, 11]),
    tiny.decode([10]),
  ]


def test_a_text_of_several_tokens_is_refused_by_name(tiny):
  with pytest.raises(errors.UserError, match=r'!!.*\[\d+, \d+\].*step_marks'):
    tiny.step_ids(('.\n\n', '!!'))
  with pytest.raises(errors.UserError, match='data.step_marks'):
    tiny.step_ids(())


def _folder(tmp_path, vocab, settings=None):
  model = tokenizers.models.WordLevel(vocab, unk_token='<unk>')
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
    tokenizers.Regex(r'[\s\S]'), 'isolated'
  )
  backend.decoder = tokenizers.decoders.Fuse()
  backend.save(str(tmp_path / 'tokenizer.json'))
  if settings is not None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (tmp_path / 'tokenizer_config.json').write_text(text)
  return tmp_path


def test_a_tokenizer_without_think_is_refused_when_asked(tmp_path):
  vocab = {c: i for i, c in enumerate(['<unk>', *'<think>/.E']) if c}
  settings = {'eos_token': {'content': 'E'}, 'pad_token': '.'}
  loaded = tokenizer_lib.Tokenizer.from_folder(
    _folder(tmp_path, vocab, settings)
  )
  assert loaded.eos_id == vocab['E']
  assert loaded.pad_id == vocab['.']
  # The first id of the encoding is not the id of the text.
  with pytest.raises(errors.UserError, match='<think>.*one token'):
    _ = loaded.think_start_id
  # A vocabulary with gaps: the embedding must still cover the largest id.
  assert loaded.vocab_size == max(vocab.values()) + 1
  override = tokenizer_lib.Tokenizer.from_folder(tmp_path, eos_token='t')
  assert override.eos_id == vocab['t']


def test_bad_folders(tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    tokenizer_lib.Tokenizer.from_folder(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"broken"')
  with pytest.raises(errors.UserError, match='cannot be read') as info:
    tokenizer_lib.Tokenizer.from_folder(tmp_path)
  assert '\n' not in str(info.value)
  _folder(tmp_path, {'<unk>': 0}, settings='{')
  with pytest.raises(errors.UserError, match='no JSON'):
    tokenizer_lib.Tokenizer.from_folder(tmp_path)


def test_transformers_reads_the_folder_alike(tiny):
  transformers = pytest.importorskip('transformers')
  theirs = transformers.AutoTokenizer.from_pretrained(
    str(build_tiny_tokenizer.FOLDER)
  )
  question = 'Make -6 using 7, 7, 1, 5.'
  prompt = theirs.apply_chat_template(
    [{'role': 'user', 'content': question}],
    tokenize=False,
    add_generation_prompt=True,
  )
  assert prompt == templates.render_prompt(question)
  ids = tiny.encode(prompt)
  assert theirs(prompt)['input_ids'] == ids
  assert theirs.decode(ids) == prompt
  assert (theirs.eos_token_id, theirs.pad_token_id) == (
    tiny.eos_id,
    tiny.pad_id,
  )
