"""`launch.sweep --table`: a page and a picture, or one line and nothing."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from launch import law_report
from metastone_jax.errors import UserError
from tests.launch import jobs


@contextlib.contextmanager
def given(**values):
  """Flags of the command, as its command line would set them."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  saved = {name: flags.FLAGS[name].value for name in values}
  try:
    for name, value in values.items():
      flags.FLAGS[name].value = value
    yield
  finally:
    for name, value in saved.items():
      flags.FLAGS[name].value = value


def table(tmp_path, *, scale=1.0):
  lines = ['size,flops,score']
  for size, start in (('small', 20.0), ('large', 40.0)):
    lines += [
      f'{size},{1e9 * 2**i},{scale * (start + 4 * i - 0.2 * i**2)}'
      for i in range(7)
    ]
  path = tmp_path / 'mine.csv'
  path.write_text('\n'.join(lines))
  return str(path)


COLUMNS = dict(
  compute_column='flops', accuracy_column='score', group_column='size'
)


def test_page_and_picture(tmp_path):
  page = tmp_path / 'out' / 'laws.md'
  with given(**COLUMNS, target=[50.0]):
    law_report.run(table(tmp_path), str(page))
  text = page.read_text()
  assert text.startswith('# Laws of mine.csv') and '(laws.png)' in text
  assert 'large' in text and 'small' in text and 'column `flops`' in text
  assert page.with_suffix('.png').read_bytes().startswith(b'\x89PNG')
  assert sorted(x.name for x in page.parent.iterdir()) == [
    'laws.md',
    'laws.png',
  ]


def test_shares_and_their_targets(tmp_path):
  pages = [tmp_path / 'a.md', tmp_path / 'b.md']
  for page, scale, target in zip(pages, (1.0, 0.01), (50.0, 0.5), strict=True):
    with given(**COLUMNS, target=[target]):
      law_report.run(table(tmp_path, scale=scale), str(page))
  percent, shares = (page.read_text() for page in pages)
  assert 'has shares (0..1)' in shares and 'has shares' not in percent
  for label in ('| small ', '| large ', '| small (', '- small: `acc'):
    fits, same = (
      [line for line in text.split('\n') if line.startswith(label)]
      for text in (percent, shares)
    )
    # The line's fit, or the prediction.
    assert fits and fits[0].split() == same[0].split()
  with given(**COLUMNS, target=[50.0]):
    with pytest.raises(UserError, match='--target=50.*shares'):
      law_report.run(table(tmp_path, scale=0.01), str(tmp_path / 'c.md'))
  assert not (tmp_path / 'c.md').exists()


def test_published(tmp_path):
  page = tmp_path / 'p.md'
  with given(target=[95.0]):
    law_report.run('published', str(page))
  text = page.read_text()
  assert text.startswith('# The published table') and 'S1-1.5B' in text
  assert ' 95 |' in text and 'outside of the computes' in text
  assert page.with_suffix('.png').exists()


def test_the_example_of_the_readme(tmp_path):
  page = tmp_path / 'k.md'
  with given(compute_column='k', group_column='curve', target=[90.0]):
    law_report.run(f'{jobs.ROOT}/docs/scaling_published.csv', str(page))
  lines = page.read_text().split('\n')
  # Its log-linear fit, by hand: from 44.0 to 57.9 in four doublings.
  (fit, *_) = (x for x in lines if x.startswith('| S1-1.5B, AIME24 '))
  assert fit.split('|')[5].split()[0] == '3.5'
  assert sum(x.startswith('| XBai-o4, ') for x in lines) == 4 * 4


def test_what_a_label_holds_stays_in_its_cell(tmp_path):
  page = tmp_path / 'laws.md'
  path = tmp_path / 'x.csv'
  rows = [f'{2**i},{i},"a|b $x^ _"' for i in range(4)]
  path.write_text('\n'.join(['compute,accuracy,who', *rows]))
  with given(group_column='who'):
    law_report.run(str(path), str(page))
  table_rows = [x for x in page.read_text().split('\n') if x.startswith('|')]
  for row in table_rows:
    assert row.count('|') - row.count('\\|') in {
      other.count('|') - other.count('\\|') for other in table_rows[:1]
    } | {5, 6, 8}
  assert any(row.startswith('| a\\|b $x^ _ ') for row in table_rows)


def test_a_page_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with given(**COLUMNS), pytest.raises(UserError, match='no page') as caught:
    law_report.run(table(tmp_path), str(tmp_path / 'file' / 'page.md'))
  assert '\n' not in str(caught.value)


BAD = {
  'missing column': ('x.csv', 'flops,accuracy\n1,2\n', "no column 'compute'"),
  'text': ('x.csv', 'compute,accuracy\n1,2\nbig,3\n', "row 2.*number.*'big'"),
  'nan': ('x.csv', 'compute,accuracy\n1,NaN\n', 'row 1.*finite'),
  'negative': ('x.csv', 'compute,accuracy\n-1,2\n', 'above 0'),
  'one point': ('x.csv', 'compute,accuracy\n1,2\n', 'no curve has 3 points'),
  'two points': ('x.csv', 'compute,accuracy\n1,2\n2,3\n', 'no curve has 3'),
  'one compute': (
    'x.csv',
    'compute,accuracy\n1,2\n1,3\n1,4\n',
    'no curve has 3 points at 2 different computes',
  ),
  'empty': ('x.csv', '', 'has no row'),
  'extension': ('x.txt', 'compute,accuracy\n1,2\n', 'extension .txt'),
}


@pytest.mark.parametrize('name, text, message', BAD.values(), ids=BAD)
def test_bad_files_leave_nothing(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with given(), pytest.raises(UserError, match=message) as caught:
    law_report.run(str(tmp_path / name), str(tmp_path / 'page.md'))
  assert '\n' not in str(caught.value)
  assert [x.name for x in tmp_path.iterdir()] == [name]


def test_page_must_be_markdown(tmp_path):
  with given(), pytest.raises(UserError, match='must end with .md'):
    law_report.run('published', str(tmp_path / 'page.png'))


def test_points_of_the_table_are_drawn_and_fitted_by_group(tmp_path):
  page = tmp_path / 'laws.md'
  with given(**COLUMNS):
    law_report.run(table(tmp_path), str(page))
  rows = [x for x in page.read_text().split('\n') if x.startswith('| small ')]
  points, slope = (cell.strip() for cell in rows[0].split('|')[2:6:3])
  i = np.arange(7)
  expected = np.polyfit(i, 20 + 4 * i - 0.2 * i**2, 1)[0]
  assert points == '7' and float(slope.split()[0]) == pytest.approx(
    expected, abs=0.06
  )


def test_the_command(tmp_path):
  command = [sys.executable, '-m', 'launch.sweep', '--page=laws.md']

  def run(*arguments):
    return subprocess.run(
      [*command, *arguments],
      cwd=tmp_path,
      env={**jobs.environment(), 'PYTHONPATH': str(jobs.ROOT)},
      capture_output=True,
      text=True,
      timeout=120,
    )

  flagged = [f'--{name}={value}' for name, value in COLUMNS.items()]
  done = run(f'--table={table(tmp_path)}', *flagged, '--target=50')
  assert done.returncode == 0, done.stderr
  assert 'written: laws.md' in done.stdout
  assert (tmp_path / 'laws.md').exists()
  done = run('--table=none.csv')
  assert done.returncode == 2
  assert done.stderr.strip().split('\n') == [
    'error: there is no --table none.csv'
  ]
