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
      templates.CHATML_THINK.render(problem.question),
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
    prompt = templates.CHATML_THINK.render(problem.question)
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


def _folder(tmp_path, vocab, settings=None, added=(), **files):
  model = tokenizers.models.WordLevel(vocab, unk_token='<unk>')
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
    tokenizers.Regex(r'[\s\S]'), 'isolated'
  )
  backend.decoder = tokenizers.decoders.Fuse()
  backend.add_special_tokens(list(added))
  backend.save(str(tmp_path / 'tokenizer.json'))
  if settings is not None:
    files['tokenizer_config'] = settings
  for name, content in files.items():
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / f'{name}.json').write_text(text)
  return tmp_path


def _letters(text):
  return {c: i for i, c in enumerate(dict.fromkeys(['<unk>', *text]))}


def load(*args, **options):
  return tokenizer_lib.Tokenizer.from_folder(*args, **options)


def test_a_tokenizer_without_think_tags(tmp_path):
  vocab = {c: i for i, c in enumerate(['<unk>', *'<think>/.E']) if c}
  settings = {'eos_token': {'content': 'E'}, 'pad_token': '.'}
  loaded = load(_folder(tmp_path, vocab, settings))
  assert loaded.eos_id == vocab['E']
  assert loaded.pad_id == vocab['.']
  # The first id of the encoding is not the id of the text.
  assert not loaded.has_think_tags and loaded.think_tags == ()
  assert (loaded.think_start_id, loaded.think_end_id) == (-1, -1)
  with pytest.raises(errors.UserError, match='<think>.*one token'):
    loaded.id_of('<think>')
  # A vocabulary with gaps: the embedding must still cover the largest id.
  assert loaded.vocab_size == max(vocab.values()) + 1
  override = load(tmp_path, eos_token='t', pad_token='E')
  assert (override.eos_id, override.pad_id) == (vocab['t'], vocab['E'])


def test_think_tags_are_discovered_or_checked(tmp_path, tiny):
  assert tiny.think_tags == ('<think>', '</think>') and tiny.has_think_tags
  none = load(build_tiny_tokenizer.FOLDER, think_tags=())
  assert (none.think_start_id, none.think_end_id) == (-1, -1)
  own = load(build_tiny_tokenizer.FOLDER, think_tags=('user', 'assistant'))
  assert own.think_start_id == tiny.id_of('user')
  assert own.think_end_id == tiny.id_of('assistant')
  for tags in (('<think>', '<stop>'), ('<go>', '</think>')):
    with pytest.raises(errors.UserError, match='<(stop|go)>.*one token'):
      load(build_tiny_tokenizer.FOLDER, think_tags=tags)
  for tags in ('<think>', ('<think>',), ('a', 'b', 'c')):
    with pytest.raises(errors.UserError, match='give two texts'):
      load(build_tiny_tokenizer.FOLDER, think_tags=tags)
  for half in ('<think>', '</think>'):
    folder = _folder(tmp_path, _letters('<think>/'), added=[half])
    with pytest.raises(errors.UserError, match=f"only '{half}'"):
      load(folder)
    assert not load(folder, think_tags=()).has_think_tags


def test_which_file_is_read(tmp_path):
  folder = _folder(tmp_path, _letters('abE'), {'eos_token': 'E'})
  # The JSON file wins over a SentencePiece model beside it.
  (folder / 'tokenizer.model').write_bytes(b'not read')
  for path in (folder, str(folder), folder / 'tokenizer.json'):
    assert load(path).encode('ab') == [1, 2]
    # The settings beside a file count as well.
    assert load(path).eos_id == 3
    assert load(path).folder == folder


def test_a_vocabulary_without_tokenizer_json_is_refused(tmp_path):
  (tmp_path / 'vocab.json').write_text('{}')
  (tmp_path / 'merges.txt').write_text('')
  with pytest.raises(errors.UserError, match='AutoTokenizer.*save_pretrained'):
    load(tmp_path)


@pytest.mark.parametrize(
  ('added', 'settings', 'expected', 'said'),
  [
    ((), {'pad_token': 'b'}, 'b', None),
    (('<|endoftext|>',), {}, '<|endoftext|>', 'names no pad'),
    (('<|endoftext|>',), {'pad_token': None}, '<|endoftext|>', 'names no pad'),
    ((), {'unk_token': '<unk>'}, '<unk>', 'names no pad'),
    ((), {'unk_token': '<other>'}, 'E', 'names no pad'),
    ((), {'pad_token': '<pad>'}, 'E', "pad token '<pad>'"),
  ],
)
def test_pad_falls_back(tmp_path, caplog, added, settings, expected, said):
  settings = {'eos_token': 'E', **settings}
  folder = _folder(tmp_path, _letters('abE'), settings, added)
  caplog.set_level('WARNING', 'absl')
  for _ in range(2):
    loaded = load(folder)
  assert loaded.pad_token == expected
  assert loaded.decode([loaded.pad_id]) == expected
  if said is None:
    assert not caplog.records
  else:
    # Once, though it was loaded twice.
    assert [said in r.getMessage() for r in caplog.records] == [True]
  # A pad token asked for by name is not replaced.
  with pytest.raises(errors.UserError, match='<nope>.*pad_token'):
    _ = load(folder, pad_token='<nope>').pad_id


def test_special_tokens_of_older_folders(tmp_path):
  """special_tokens_map.json and added_tokens.json, merged as transformers."""
  folder = _folder(
    tmp_path,
    _letters('abE'),
    {'eos_token': 'a', 'added_tokens_decoder': {}},
    special_tokens_map={'eos_token': 'E', 'pad_token': {'content': 'b'}},
    added_tokens={'<new>': 4},
  )
  loaded = load(folder)
  assert (loaded.eos_token, loaded.pad_token) == ('a', 'b')
  (folder / 'tokenizer_config.json').write_text('{"eos_token": "a"}')
  loaded = load(folder)
  assert (loaded.eos_token, loaded.pad_token) == ('E', 'b')
  assert loaded.special_tokens == {'eos_token': 'E', 'pad_token': 'b'}
  assert loaded.encode('a<new>b') == [1, 4, 2]
  transformers = pytest.importorskip('transformers', reason='extra "test"')
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
  assert theirs.eos_token == 'E'
  assert theirs.encode('a<new>b', add_special_tokens=False) == [1, 4, 2]


def test_what_a_file_would_add_or_cut_is_off(tmp_path):
  folder = _folder(tmp_path, _letters('abE'), {'eos_token': 'E'})
  stored = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  stored.post_processor = tokenizers.processors.TemplateProcessing(
    single='E $A', special_tokens=[('E', 3)]
  )
  stored.enable_truncation(4)
  stored.enable_padding(length=7)
  stored.save(str(folder / 'tokenizer.json'))
  assert stored.encode('abababab').ids == [3, 1, 2, 1, 0, 0, 0]
  loaded = load(folder)
  ids = [1, 2] * 4
  assert loaded.encode('abababab') == ids
  assert loaded.encode_batch(['abababab', 'a']) == [ids, [1]]


def test_added_tokens_of_another_model_are_refused(tmp_path):
  settings = {'added_tokens_decoder': {'9': {'content': '<new>'}}}
  with pytest.raises(errors.UserError, match="'<new>' as id 9"):
    load(_folder(tmp_path, _letters('abE'), settings))
  for broken in ({'x': {'content': 'a'}}, {'1': {}}, {'1': 'a'}, [1]):
    _folder(tmp_path, _letters('a'), {'added_tokens_decoder': broken})
    with pytest.raises(errors.UserError, match='copy its files again'):
      load(tmp_path)


def test_several_tokens_may_end_a_response(tmp_path):
  settings = {'eos_token': 'E', 'pad_token': 'a'}
  folder = _folder(tmp_path, _letters('abE'), settings)
  assert load(folder).stop_ids == (3,)
  for value, expected in ((3, (3,)), ([1, 3, 2], (3, 1, 2)), (2, (3, 2))):
    _folder(folder, _letters('abE'), generation_config={'eos_token_id': value})
    assert load(folder).stop_ids == expected
    assert load(folder).stop_tokens == tuple('?abE'[i] for i in expected)
  # Without a name the first listed id is the end.
  (folder / 'tokenizer_config.json').unlink()
  assert load(folder).eos_id == 2
  for value, message in (
    (99, 'eos id 99'),
    (['E'], 'id or a list'),
    (True, 'id or a list'),
    (-1, 'id or a list'),
  ):
    _folder(folder, _letters('E'), generation_config={'eos_token_id': value})
    with pytest.raises(errors.UserError, match=message):
      load(folder)


def test_the_message_names_marks_that_work(tmp_path, tiny):
  assert tiny.find_step_marks() == ('.\n\n', '\n\n', '\n')
  assert tiny.find_step_marks(['.\n\n', '!', '!!']) == ('.\n\n', '!')
  with pytest.raises(errors.UserError) as info:
    tiny.step_ids(('.\n',))
  assert "has as one token: '.\\n\\n', '\\n\\n', '\\n'" in str(info.value)
  letters = load(_folder(tmp_path, _letters('abE'), {'eos_token': 'E'}))
  assert letters.find_step_marks() == ()
  with pytest.raises(errors.UserError, match='none of the usual'):
    letters.step_ids()


def test_ids_ending_in_a_text(tiny):
  tokens = {i: tiny.decode([i]) for i in range(tiny.vocab_size)}
  for text in ('\n\n', '9', '>', ' the'):
    expected = [i for i, token in tokens.items() if token.endswith(text)]
    assert tiny.step_ids_ending(text) == tuple(expected) and expected
  assert len(tiny.step_ids_ending('.\n\n')) == 1
  for text in ('', 'zzz'):
    with pytest.raises(errors.UserError, match='no token that ends'):
      tiny.step_ids_ending(text)


def test_a_blank_put_before_each_text_does_not_count(tmp_path):
  """The form of Llama-2's tokenizer.json."""
  tokens = ['<unk>', '▁', 'a', '▁a', '.', '▁.', '<0x0A>', 'E', '▁E']
  vocab = {token: i for i, token in enumerate(tokens)}
  merges = [('▁', 'a'), ('▁', '.'), ('▁', 'E')]
  model = tokenizers.models.BPE(
    vocab, merges, unk_token='<unk>', byte_fallback=True, fuse_unk=True
  )
  backend = tokenizers.Tokenizer(model)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
  decoders = tokenizers.decoders
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  loaded = tokenizer_lib.Tokenizer(backend, name='blank', eos_token='E')
  assert loaded.encode('a.\n') == [3, 4, 6]
  # Alone it would be ['▁.'], inside a text it is ['.'].
  assert loaded.encode('.') == [5]
  assert loaded.id_of('.') == 4 and loaded.id_of(' .') == 5
  assert loaded.id_of('\n') == 6 and loaded.eos_id == 7
  assert loaded.find_step_marks() == ('\n',)
  assert loaded.step_ids_ending('.') == (4, 5)
  with pytest.raises(errors.UserError, match=r'\[4, 6\]'):
    loaded.id_of('.\n')


def test_bad_folders(tmp_path):
  with pytest.raises(errors.UserError, match='does not exist'):
    tokenizer_lib.Tokenizer.from_folder(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"broken"')
  with pytest.raises(errors.UserError, match='cannot be read') as info:
    tokenizer_lib.Tokenizer.from_folder(tmp_path)
  assert '\n' not in str(info.value)
  with pytest.raises(errors.UserError, match='does not exist'):
    tokenizer_lib.Tokenizer.from_folder(tmp_path / 'nowhere')
  _folder(tmp_path, {'<unk>': 0}, settings='{')
  with pytest.raises(errors.UserError, match='is no JSON'):
    tokenizer_lib.Tokenizer.from_folder(tmp_path)
  _folder(tmp_path, {'<unk>': 0}, settings='[]')
  with pytest.raises(errors.UserError, match='no JSON object'):
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
  assert prompt == templates.CHATML_THINK.render(question)
  ids = tiny.encode(prompt)
  assert theirs(prompt)['input_ids'] == ids
  assert theirs.decode(ids) == prompt
  assert (theirs.eos_token_id, theirs.pad_token_id) == (
    tiny.eos_id,
    tiny.pad_id,
  )
