"""How often each problem was solved, as `launch.evaluate` measured it.

JSON lines with `pass_rate` in [0, 1], `id` or `question` or both, and
`samples`, the number of responses that were judged. Several lines on one
problem are averaged, weighted by their samples.
"""

from collections.abc import Mapping
from typing import Any

from metastone_jax import errors
from metastone_jax.tasks import base, overlap
from metastone_jax.tasks.sources import RowError
from metastone_jax.tasks.sources.jsonl import JsonLines


class PassRates:
  """Pass rates of problems, by id or by question.

  Args:
    path: the file, or several; see `sources.base.expand`.
    folder: of relative paths.

  Raises:
    UserError: a line that says nothing of use.
  """

  def __init__(self, path: str, folder: str = ''):
    source = JsonLines(path, folder)
    self._by_id: dict[str, list[float]] = {}
    self._by_question: dict[str, list[float]] = {}
    for i in range(len(source)):
      try:
        line = source.row(i)
        rate, samples = _measured(line)
      except RowError as error:
        raise errors.UserError(
          f'{source.where(i)} {error}; pass rates are lines like '
          '{"id": "math/7", "question": "...", "pass_rate": 0.25, "samples": '
          '16}'
        ) from error
      keys = (
        (self._by_id, line.get('id')),
        (
          self._by_question,
          overlap.normal_text(line['question'])
          if line.get('question')
          else None,
        ),
      )
      for table, key in keys:
        if key is not None:
          sums = table.setdefault(key, [0.0, 0])
          sums[0] += rate * samples
          sums[1] += samples

  def of(self, problem: base.Problem) -> float | None:
    """The measured rate of a problem; None if there is none.

    A question says more than an id, which another file may use too.
    """
    sums = self._by_question.get(overlap.normal_text(problem.question))
    if sums is None:
      sums = self._by_id.get(problem.id)
    return None if sums is None else sums[0] / sums[1]


def _measured(line: Mapping[str, Any]) -> tuple[float, int]:
  """(pass rate, samples) of a line."""
  rate, samples = line.get('pass_rate'), line.get('samples', 1)
  if type(rate) not in (int, float) or not 0 <= rate <= 1:
    raise RowError(f'has pass_rate={rate!r}, which must be a number in [0, 1]')
  if type(samples) is not int or samples < 1:
    raise RowError(f'has samples={samples!r}, which must be at least 1')
  named = [line[k] for k in ('id', 'question') if line.get(k) is not None]
  if not named or not all(isinstance(x, str) for x in named):
    raise RowError('needs id or question, as text')
  return rate, samples
