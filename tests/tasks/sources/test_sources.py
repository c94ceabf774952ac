"""Sources: the same rows from every format, damage by name, lazy, picklable."""

import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from metastone_jax import errors
from metastone_jax.tasks import sources
from metastone_jax.tasks.sources import base, champ
from tests.tasks.sources import files

ROWS = [
  {'prompt': f'question {i} \u4e2d\U0001f600 "x"\n', 'answer': i * i - 3}
  for i in range(23)
]


def make(options):
  options = dict(options)
  return sources.SOURCES[options.pop('source')](**options)


def rows_of(source):
  return [sources.plain(source.row(i)) for i in range(len(source))]


@pytest.mark.parametrize('form', files.FORMS)
def test_every_format_gives_the_rows(form, tmp_path):
  options = files.write(tmp_path, ROWS, form)
  source = make(options)
  assert source._opened is None  # nothing is read before it is needed
  found = rows_of(source)
  if form == 'tfds':  # which shuffles
    assert found != ROWS
    found = sorted(found, key=lambda row: row['answer'])
    assert found == sorted(ROWS, key=lambda row: row['answer'])
  else:
    assert found == ROWS
  again = pickle.loads(pickle.dumps(source))
  assert again._opened is None and rows_of(again) == rows_of(source)
  # Any order of reading gives the same.
  for i in np.random.default_rng(0).permutation(len(ROWS)):
    assert again.row(int(i)) == source.row(int(i))
  path = options['path']
  if form == 'tfds':
    path = next(pathlib.Path(path).glob('*array_record*'))
  name = f'{path} item 4' if form == 'json' else f'{path}:4'
  assert source.where(3) == name


@pytest.mark.parametrize('form', ['jsonl', 'parquet', 'array_record'])
def test_several_files_follow_one_another(form, tmp_path):
  for number in (10, 2, 1):  # sorted by name: 01, 02, 10
    files.write(tmp_path / f'{number:02}', ROWS[number : number + 3], form)
  (tmp_path / 'all').mkdir()
  for number in (10, 2, 1):
    path = tmp_path / f'{number:02}' / f'rows.{form}'
    path.rename(tmp_path / 'all' / f'{number:02}')
  expected = ROWS[1:4] + ROWS[2:5] + ROWS[10:13]
  source = make({'source': form, 'path': f'{tmp_path}/all/*'})
  assert rows_of(source) == expected
  assert source.where(8) == f'{tmp_path}/all/10:3'
  listed = make(
    {'source': form, 'path': ['10', '01'], 'folder': f'{tmp_path}/all'}
  )
  assert rows_of(listed) == ROWS[10:13] + ROWS[1:4]


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('nothing.jsonl', 'nothing.jsonl does not exist'),
    ('*.csv', r'no file matches .*\*.csv'),
    ('', 'must be the path'),
    ([], 'must be the path'),
    (3, 'must be the path'),
    ('.', 'is a folder'),
    (['a', '*'], 'a is named twice'),
    ('gap-*', 'gap-00001-of-00003 is missing: 2 of 3'),
  ],
)
def test_paths_that_are_refused(path, message, tmp_path):
  for name in ('a', 'gap-00000-of-00003', 'gap-00002-of-00003'):
    files.write_lines(tmp_path / name, ROWS)
  with pytest.raises(errors.UserError, match=message):
    len(sources.SOURCES['jsonl'](path, str(tmp_path)))


def test_one_shard_of_many_may_be_chosen(tmp_path):
  path = files.write_lines(tmp_path / 'gap-00000-of-00003', ROWS)
  assert len(sources.SOURCES['jsonl'](path)) == len(ROWS)


def test_bad_lines(tmp_path):
  deep = b'[' * 100_000
  lines = [
    (b'\xef\xbb\xbf{"a": 1}', {'a': 1}),
    (b'{"a": 2}\r', {'a': 2}),
    (b'', 'is empty'),
    (b'  \t', 'is empty'),
    (b'{"a": "caf\xe9"}', r'is not UTF-8 \(byte 11'),
    (b'{"a": 1', 'is not JSON'),
    (b'{"a": 1} {"a": 2}', 'is not JSON'),
    (deep, 'is not JSON'),
    (b'1' * 5000, 'is not JSON'),
    (b'[1, 2]', 'is a list, not an object'),
    (b'null', 'is null, not an object'),
    (b'{"a": "last"}', {'a': 'last'}),
  ]
  path = tmp_path / 'bad.jsonl'
  path.write_bytes(b'\n'.join(line for line, _ in lines))  # no last line break
  source = sources.SOURCES['jsonl'](str(path))
  assert len(source) == len(lines)
  for i, (_, expected) in enumerate(lines):
    if isinstance(expected, dict):
      assert source.row(i) == expected
    else:
      with pytest.raises(sources.RowError, match=f'^{expected}'):
        source.row(i)


def test_a_list_that_cannot_be_read(tmp_path):
  path = tmp_path / 'x.json'
  for data, message in (
    (b'[{"a": 1}', 'x.json is not JSON'),
    (b'{"a": 1}', 'x.json is an object, not a list'),
    (b'[]', 'x.json holds no rows'),
  ):
    path.write_bytes(data)
    with pytest.raises(errors.UserError, match=message):
      len(sources.SOURCES['json'](str(path)))


@pytest.mark.parametrize('form', ['jsonl', 'parquet', 'array_record', 'tfds'])
@pytest.mark.parametrize('kept', [0.0, 0.5, 0.9999])
def test_a_file_that_was_cut_off_is_named(form, kept, tmp_path):
  """A cut ArrayRecord opens without complaint and says it holds 0 records."""
  options = files.write(tmp_path, ROWS, form)
  path = pathlib.Path(options['path'])
  if form == 'tfds':
    path = next(path.glob('*array_record*'))
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * kept)])
  source = make(options)
  if form == 'jsonl' and kept:  # 0.9999: the last line break is gone
    if kept > 0.9:
      assert rows_of(source) == ROWS
      return
    # A line was cut, and nothing else is known to be missing.
    with pytest.raises(sources.RowError):
      source.row(len(source) - 1)
    return
  with pytest.raises(errors.UserError, match=path.name) as error:
    rows_of(source)
  assert '\n' not in str(error.value)
  if form == 'tfds':
    assert f'holds 0 records where dataset_info.json says {len(ROWS)}' in str(
      error.value
    )


def test_a_damaged_record_is_one_bad_row(tmp_path):
  rows = [{'a': str(np.random.default_rng(i).bytes(3000))} for i in range(40)]
  path = files.write_array_record(tmp_path / 'x', rows)
  data = bytearray(pathlib.Path(path).read_bytes())
  data[len(data) // 3] ^= 255
  pathlib.Path(path).write_bytes(data)
  source = sources.SOURCES['array_record'](path)
  bad = 0
  for i in range(len(source)):
    try:
      assert source.row(i) == rows[i]
    except sources.RowError as error:
      bad += 1
      assert 'is damaged' in str(error)
  assert bad == 1


def test_bad_text_in_a_parquet_file(tmp_path):
  import pyarrow
  from pyarrow import parquet

  binary = pyarrow.array([b'fine', b'caf\xe9', b'also fine'])
  text = pyarrow.Array.from_buffers(pyarrow.string(), 3, binary.buffers())
  path = tmp_path / 'x.parquet'
  parquet.write_table(pyarrow.table({'text': text, 'raw': binary}), path)
  source = sources.SOURCES['parquet'](str(path))
  assert source.row(2) == {'text': 'also fine', 'raw': b'also fine'}
  with pytest.raises(sources.RowError, match='is not UTF-8'):
    source.row(1)


def test_tfds_names_and_splits(tmp_path):
  path = files.write_tfds(tmp_path, ROWS)
  tfds = sources.SOURCES['tfds']
  part = tfds(path=path, split='train[5:9]')
  whole = tfds(path=path)
  assert rows_of(part) == rows_of(whole)[5:9]
  assert part.where(1).endswith('train[5:9] row 2')
  by_name = tfds('rows', data_dir=str(tmp_path))
  assert rows_of(by_name) == rows_of(whole)
  for options, message in (
    (dict(), 'needs dataset=NAME, or path=FOLDER'),
    (dict(dataset='no_such_set'), 'TFDS has no no_such_set'),
    (dict(path=str(tmp_path / 'x')), 'TFDS has no .*x'),
    (dict(path=path, split='test'), "no split 'test'; it has train"),
    (dict(path=path, split='train[:0]'), 'has no rows'),
    (dict(dataset='ai2_arc', data_dir=str(tmp_path)), 'download_and_prepare'),
  ):
    with pytest.raises(errors.UserError, match=message) as error:
      len(tfds(**options))
    assert '\n' not in str(error.value)


def test_no_tensorflow(tmp_path):
  path = files.write_tfds(tmp_path, ROWS)
  code = (
    'import sys\n'
    'from metastone_jax.tasks import sources\n'
    f'assert len(sources.SOURCES["tfds"](path={path!r})) == {len(ROWS)}\n'
    'assert "tensorflow_datasets" in sys.modules\n'
    'assert not {"tensorflow", "torch"} & set(sys.modules)\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)


def test_plain_values():
  value = {b'a': [np.int64(3), np.float32(0.5), b'x', None, True]}
  assert sources.plain(value) == {'a': [3, 0.5, 'x', None, True]}
  assert sources.plain(np.array([[1, 2]])) == [[1, 2]]
  assert type(sources.plain(np.int64(3))) is int
  for bad in (b'\xff', '\ud800', {'a': ['\udc00']}, object()):
    with pytest.raises(sources.RowError):
      sources.plain(bad)


def test_missing_packages_are_named(tmp_path, monkeypatch):
  for form, module in (
    ('parquet', 'pyarrow'),
    ('array_record', 'array_record.python'),
    ('tfds', 'tensorflow_datasets'),
    ('champ', 'champ_dataset'),
  ):
    with monkeypatch.context() as patch:
      patch.setitem(sys.modules, module, None)
      champ._rows.cache_clear()
      path = files.write_lines(tmp_path / 'x', ROWS)
      source = sources.SOURCES[form](
        **{} if form == 'champ' else {'path': path}
      )
      with pytest.raises(
        errors.UserError, match=rf'pip install "metastone_jax\[{form}\]"'
      ):
        len(source)


@pytest.mark.parametrize(
  ('answer', 'number'),
  [
    ('239', '239'),
    ('-3 is the only possible value', '-3'),
    ('C(10, 5), or equivalently 252', '252'),
    ('5/14, or approximately 35.7%', '5/14'),
    ('100 (i.e., all values)', '100'),
    ('98 values', '98'),
    ('376 and 625', None),
    ('2^997', None),
    ('Yes', None),
    ('1, 4 and 9', None),
    ('At least 1 number', None),
    ('0 (none of the values)', None),
    ('sum_(i=1)^n i^2, or equivalently n(n+1)(2n+1)/6', None),
  ],
)
def test_numbers_in_the_answers_of_champ(answer, number):
  assert champ.number_in(answer) == number


def test_champ():
  every = champ.Champ('all')
  numbers = champ.Champ()
  assert len(every) == 270
  rows = rows_of(numbers)
  assert len(rows) == sum(
    champ.number_in(every.row(i)['answer']) is not None for i in range(270)
  )
  assert len({row['id'] for row in rows}) == len(rows) == 128
  first = rows[0]
  assert first['id'] == 'P_Combinatorics_1' and first['answer'] == '239'
  assert first['solution'].count('\n\n') == 5
  assert numbers.where(0) == 'champ-dataset P_Combinatorics_1'
  with pytest.raises(errors.UserError, match="answers='some'"):
    champ.Champ('some')


def test_kinds_in_words():
  assert base.kind_of(None) == 'null' and base.kind_of({}) == 'an object'
