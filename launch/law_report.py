"""Laws of a table: `python -m launch.sweep --table=FILE`.

Writes a page with fits, their comparison, the bend and predictions, and a
picture beside it.
"""

from absl import flags
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import (
  plots,
  published_plot,
  published_report,
  report,
  user_table,
)
from metastone_jax.telemetry import files

PUBLISHED = 'published'

_COMPUTE = flags.DEFINE_string(
  'compute_column', 'compute', 'Of --table: the column of compute, above 0.'
)
_ACCURACY = flags.DEFINE_string(
  'accuracy_column',
  'accuracy',
  'Of --table: the column of accuracy; all in 0..1, or per cent.',
)
_GROUP = flags.DEFINE_string(
  'group_column',
  '',
  'Of --table: the column that tells curves apart; empty = one curve.',
)
_TARGETS = flags.DEFINE_multi_float(
  'target',
  None,
  'Of --table: predict the compute for this accuracy, in the unit of the '
  'table; may be given several times.',
)


def run(table: str, page: str) -> None:
  """Fits the laws to a table and writes page and picture.

  Args:
    table: a file as `user_table.read_table` takes it, or `published`.
    page: Markdown file to write; the picture gets its name with .png.

  Raises:
    UserError: a file that cannot be used; nothing is written then.
  """
  path = epath.Path(page)
  if path.suffix != '.md':
    raise UserError(f'--page={page}: must end with .md, a Markdown page')
  picture = path.with_suffix('.png')
  targets = tuple(_TARGETS.value or ())
  if table == PUBLISHED:
    kept = {'targets': targets} if targets else {}
    text = published_report.published_section(picture, level=1, **kept)
    draw = lambda: published_plot.plot_published(picture)  # noqa: E731
  else:
    found = user_table.read_table(
      table,
      compute=_COMPUTE.value,
      accuracy=_ACCURACY.value,
      group=_GROUP.value,
    )
    text, draw = _of_user(found, table, targets, picture)
  with files.writing(path, 'no page; give another --page'):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw()
    files.write_text_atomic(path, text)
  for written in (path, picture):
    print(f'written: {written}')


def _of_user(found, table, targets, picture):
  """(text, function that draws)."""
  if found.shares:
    wrong = [target for target in targets if not 0 <= target <= 1]
    if wrong:
      raise UserError(
        f'--target={wrong[0]:g}: the accuracies of {table} are shares (0..1); '
        'give the target as one'
      )
    targets = tuple(100 * target for target in targets)
  if not any(curve.can_be_fitted for curve in found.curves):
    raise UserError(
      f'{table}: no curve has 3 points at 2 different computes or more, which '
      f'a line needs; there are {len(found.curves)} curves of '
      f'{max(len(curve.compute_n) for curve in found.curves)} points or fewer '
      '(--group_column tells curves apart)'
    )
  intro = ''
  if found.shares:
    intro = 'The table has shares (0..1); this page shows them in per cent.'
  title = f'Laws of {epath.Path(table).name}'
  analyses = report.analyse_all(found.curves)
  text = report.law_section(
    title,
    found.curves,
    targets=targets,
    analyses=analyses,
    intro=intro,
    compute_name=f'the column `{_COMPUTE.value}`',
    heading='#',
  )
  text += f'\n\n![Accuracy against compute]({picture.name})\n'

  def draw():
    plots.plot_accuracy_against_compute(
      found.curves,
      picture,
      title=title,
      compute_name=_COMPUTE.value,
      laws={one.curve.label: one.selection.chosen for one in analyses},
    )

  return text, draw
