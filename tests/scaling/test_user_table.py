"""Tables of a user: three kinds of file, one line for each bad one."""

import io
import json
import sys

import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.scaling import user_table

CSV = 'run,flops,acc\nb,4e9,50\na,1e9,20\nb,1e9,40\na,4e9,30.5\n'
NAMES = dict(compute='flops', accuracy='acc', group='run')


def rows():
  head, *lines = CSV.split()
  found = [dict(zip(head.split(','), x.split(','), strict=True)) for x in lines]
  return [
    {'run': r['run'], 'flops': float(r['flops']), 'acc': float(r['acc'])}
    for r in found
  ]


def check(found):
  assert [curve.label for curve in found.curves] == ['b', 'a']
  # In the order of compute, whatever that of the file.
  np.testing.assert_array_equal(found.curves[0].compute_n, [1e9, 4e9])
  np.testing.assert_array_equal(found.curves[0].accuracy_n, [40, 50])
  np.testing.assert_array_equal(found.curves[1].accuracy_n, [20, 30.5])
  assert not found.shares


def test_csv(tmp_path):
  path = tmp_path / 'x.csv'
  # As a spreadsheet writes it: byte-order mark, carriage returns.
  path.write_bytes(b'\xef\xbb\xbf' + CSV.replace('\n', '\r\n').encode())
  check(user_table.read_table(path, **NAMES))


def test_json_lines(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text('\n\n'.join(json.dumps(row) for row in rows()))
  check(user_table.read_table(path, **NAMES))


def test_parquet(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  from pyarrow import parquet

  path, buffer = tmp_path / 'x.parquet', io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist(rows()), buffer)
  path.write_bytes(buffer.getvalue())
  check(user_table.read_table(path, **NAMES))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
  path = tmp_path / 'x.parquet'
  path.write_bytes(b'PAR1')
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(UserError, match=r'pip install .*\[parquet\]'):
    user_table.read_table(path)


def test_one_curve_without_a_group(tmp_path):
  path = tmp_path / 'mine.csv'
  path.write_text('compute,accuracy,who\n1,10,a\n2,20,b\n')
  (curve,) = user_table.read_table(path).curves
  assert curve.label == 'mine' and len(curve.compute_n) == 2


def test_shares_become_per_cent(tmp_path):
  path = tmp_path / 'x.csv'
  path.write_text('compute,accuracy\n1,0.1\n2,1\n')
  found = user_table.read_table(path)
  assert found.shares
  np.testing.assert_allclose(found.curves[0].accuracy_n, [10, 100])
  # One value above 1: per cent, all of them.
  path.write_text('compute,accuracy\n1,0.1\n2,1.5\n')
  found = user_table.read_table(path)
  assert not found.shares
  np.testing.assert_allclose(found.curves[0].accuracy_n, [0.1, 1.5])


BAD = {
  'missing column': ('flop,accuracy\n1,2\n', "no column 'compute'.*flop; acc"),
  'text': ('compute,accuracy\n1,2\n2,many\n', r"row 2, column acc.*'many'"),
  'nan': ('compute,accuracy\n1,nan\n', 'row 1, column accuracy.*finite'),
  'infinite': ('compute,accuracy\ninf,3\n', 'row 1, column compute.*finite'),
  'negative': ('compute,accuracy\n-4,3\n', 'column compute.*above 0.*-4'),
  'zero': ('compute,accuracy\n0,3\n', 'column compute.*above 0'),
  'above 100': ('compute,accuracy\n4,130\n', 'column accuracy.*0..100.*130'),
  'empty cell': ('compute,accuracy\n4,\n', 'row 1, column accuracy: is empty'),
  'short row': ('compute,accuracy\n4\n', 'row 1, column accuracy: is empty'),
  'long row': ('compute,accuracy\n4,5,6\n', 'row 1: has more cells'),
  'no row': ('compute,accuracy\n', 'has no row'),
  'empty file': ('', 'has no row'),
}


def test_a_label_is_one_line(tmp_path):
  path = tmp_path / 'x.csv'
  path.write_text('compute,accuracy,who\n1,10,"two\nlines "\n')
  (curve,) = user_table.read_table(path, group='who').curves
  assert curve.label == 'two lines'


def test_more_than_a_page_can_show_is_refused(tmp_path):
  path = tmp_path / 'x.csv'
  most = user_table.MOST_CURVES
  lines = [f'{i % 3 + 1},10,{i}' for i in range(most + 1)]
  path.write_text('\n'.join(['compute,accuracy,who', *lines[:-1]]))
  assert len(user_table.read_table(path, group='who').curves) == most
  path.write_text('\n'.join(['compute,accuracy,who', *lines]))
  with pytest.raises(UserError, match=f'who tells {most + 1} curves apart'):
    user_table.read_table(path, group='who')
  # As many points as one likes, at so many computes.
  most = user_table.MOST_COMPUTES
  lines = [f'{i % most + 1},10' for i in range(3 * most)]
  path.write_text('\n'.join(['compute,accuracy', *lines]))
  assert len(user_table.read_table(path).curves[0].compute_n) == 3 * most
  path.write_text('\n'.join(['compute,accuracy', *lines, f'{most + 1},10']))
  with pytest.raises(UserError, match=f'curve x has {most + 1} different'):
    user_table.read_table(path)


@pytest.mark.parametrize('text, message', BAD.values(), ids=BAD)
def test_bad_tables_are_refused_in_one_line(tmp_path, text, message):
  path = tmp_path / 'bad.csv'
  path.write_text(text)
  with pytest.raises(UserError, match=message) as caught:
    user_table.read_table(path)
  assert '\n' not in str(caught.value) and 'bad.csv' in str(caught.value)


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('x.xlsx', b'PK', 'extension .xlsx is not known.*published'),
    ('x', b'1', 'extension .none. is not known'),
    ('x.jsonl', b'{"compute": 1}', "row 1: there is no column 'accuracy'"),
    ('x.jsonl', b'[3]', 'row 1: no JSON object'),
    ('x.jsonl', b'{"compute": 1,', 'row 1: no JSON'),
    ('x.jsonl', b'{"compute": true, "accuracy": 1}', 'must be a number.*True'),
    ('x.jsonl', b'{"compute": [1], "accuracy": 1}', 'must be a number'),
    (
      'x.jsonl',
      b'{"compute": 1%s, "accuracy": 1}' % (b'0' * 400),
      'row 1, column compute: must be a finite number: got 100',
    ),
    ('x.csv', b'\xff\xfe\x00', 'no UTF-8 text'),
    ('x.parquet', b'PAR1 nothing', 'no Parquet file'),
  ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as caught:
    user_table.read_table(path)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 300


def test_ends_of_lines_inside_a_json_string(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_text(
    '{"compute": 1, "accuracy": 2, "who": "a\u2028b\x85c"}\r\n'
    '{"compute": 2, "accuracy": 3, "who": "a b c"}\n',
    newline='',
  )
  (curve,) = user_table.read_table(path, group='who').curves
  assert curve.label == 'a b c' and curve.compute_n.tolist() == [1, 2]


def test_no_file(tmp_path):
  with pytest.raises(UserError, match='there is no --table'):
    user_table.read_table(tmp_path / 'none.csv')
