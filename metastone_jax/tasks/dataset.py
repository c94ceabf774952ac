"""A task whose problems are the rows of a file or another source.

Everything is read, checked and counted when the task is made, and kept in
memory (about 1 KB a problem): bad rows, rows whose question came before, rows
that overlap with evaluation sets, rows outside the wanted pass rates. One line
in the log says how many of each there were; what is left follows from the rows
alone. The order of training follows from the questions, so the same rows in
another format or order are trained on in the same order.
"""

import collections
import dataclasses
import hashlib
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from metastone_jax import errors
from metastone_jax.tasks import arguments, base, finite, overlap, templates
from metastone_jax.tasks.fields import Fields
from metastone_jax.tasks.pass_rates import PassRates
from metastone_jax.tasks.selection import Selection
from metastone_jax.tasks.sources import (
  SOURCES,
  RowError,
  Source,
  refuse_or_tell,
)
from metastone_jax.tasks.verifiers.base import Verifier
from metastone_jax.tasks.verifiers.registry import get_verifier

_LOG_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class _Row:
  """A good row."""

  source: Source
  index: int
  problem: base.Problem
  solution: str
  normal: str  # of the question

  @property
  def where(self) -> str:
    return self.source.where(self.index)


class DatasetTask(finite.FiniteTask):
  """The task; see the module docstring.

  Args:
    name: of the task.
    seed: of the order of training.
    source: the rows.
    heldout_source: of the held-out problems; None: see `Selection.heldout`.
    fields: of the rows.
    verifier: judges responses.
    selection: which rows are taken.
    overlap_with: evaluation tasks whose problems must not be trained on.
    folder: of a relative path of pass rates.

  Attributes:
    counts: rows by what became of them: 'rows' (all), 'bad', 'seen' (their
      question came before, or is held out), 'conflicting' (seen with another
      answer), 'overlapping', 'filtered', 'long' (taken out by `without`),
      'train', 'heldout'.

  Raises:
    UserError: bad rows where they are not to be skipped, an overlap likewise,
      a source that cannot be read, or nothing left.
  """

  may_skip = True

  def __init__(
    self,
    name: str,
    seed: int,
    *,
    source: Source,
    fields: Fields,
    verifier: Verifier,
    selection: Selection,
    heldout_source: Source | None = None,
    overlap_with: Sequence[base.Task] = (),
    folder: str = '',
  ):
    selection.check(name)
    self.verifier = verifier
    self.counts: collections.Counter[str] = collections.Counter()
    self._told = time.monotonic()
    rows = self._read(name, source, fields, selection)
    if heldout_source is not None:
      heldout = self._read(name, heldout_source, fields, selection, 'heldout/')
      _check_ids(name, rows, heldout)
      known = {row.normal for row in heldout}
      train = [row for row in _in_order(rows) if row.normal not in known]
      self.counts['seen'] += len(rows) - len(train)
    else:
      train, heldout = _split(rows, selection.heldout)
    train = self._without_overlap(name, train, selection, overlap_with)
    train = self._of_wanted_difficulty(name, train, selection, folder)
    self.counts['train'] = len(train)
    self.counts['heldout'] = len(heldout)
    logging.info('%s', self.report(name))
    if not (heldout if selection.heldout == 'all' else train):
      raise errors.UserError(
        f'{self.report(name)}: no problem is left; check fields and filters'
      )
    if selection.heldout in ('hash', 'source') and not heldout:
      raise errors.UserError(
        f'{self.report(name)}: no held-out problem; give heldout_path, or '
        "heldout='none'"
      )
    super().__init__(
      name, seed, [r.problem for r in train], [r.problem for r in heldout]
    )
    self._solutions = {
      row.problem.id: row.solution for row in (*train, *heldout)
    }
    self._rows = {
      row.problem.id: (row.source, row.index) for row in (*train, *heldout)
    }
    self.demonstrates = bool(fields.solution)
    self.bad_rows = selection.bad_rows

  def where(self, problem: base.Problem) -> str:
    """See `FiniteTask.where`."""
    source, index = self._rows[problem.id]
    return source.where(index)

  def without(self, ids: Collection[str]) -> 'DatasetTask':
    """See `FiniteTask.without`; they are counted."""
    left = super().without(ids)
    left.counts = self.counts.copy()
    left.counts['long'] += len(self.problems()) - len(left.problems())
    left.counts['train'] = left.num_train
    left.counts['heldout'] = left.num_heldout
    return left

  def report(self, name: str) -> str:
    """What became of the rows, in one line."""
    counts = self.counts
    return (
      f'task {name!r}: {counts["rows"]:,} rows read, {counts["bad"]:,} bad, '
      f'{counts["seen"]:,} seen before ({counts["conflicting"]:,} with another '
      f'answer), {counts["overlapping"]:,} overlap with evaluation sets, '
      f'{counts["filtered"]:,} outside the pass rates; '
      f'{counts["train"]:,} to train on, {counts["heldout"]:,} held out'
    )

  def demonstration(self, problem: base.Problem) -> str:
    """The row's solution as thinking, its answer in a box.

    A solution that holds `</think>` is a whole response already.

    Raises:
      UserError: the rows have no solutions.
    """
    if not self.demonstrates:
      raise errors.UserError(
        f'task {self.name!r} has no solutions to imitate; name their field '
        '(fields.solution), or set data.num_demonstrations=0'
      )
    solution = self._solutions[problem.id].strip()
    if '</think>' in solution:
      return solution + templates.RESPONSE_END
    return templates.render_response(f'{solution}\n\n', problem.answer)

  def verify(self, problem: base.Problem, response_text: str) -> base.Verdict:
    """What the verifier says, in this process."""
    return self.verifier.verify(problem, response_text)

  def _read(self, name, source, fields, selection, prefix='') -> list[_Row]:
    """The good rows, the first of each question.

    `prefix` comes before row numbers that serve as ids.
    """
    rows: list[_Row] = []
    ids: dict[str, int] = {}
    answers: dict[str, str] = {}  # of the questions so far
    bad: list[str] = []
    with_ends = np.zeros(2, bool)
    for index in range(len(source)):
      self._tell(name, index, len(source))
      try:
        row = source.row(index)
        problem, solution = fields.problem(row, name, f'{prefix}{index}')
        reason = self.verifier.check(problem)
        if problem.id in ids:
          first = source.where(ids[problem.id])
          reason = f'has the id of {first}, {problem.id!r}'
        with_ends |= fields.has_ends(row)
      except RowError as error:
        reason = str(error)
      if reason:
        bad.append(f'{source.where(index)} {reason}')
        continue
      ids[problem.id] = index
      normal = overlap.normal_text(problem.question)
      if normal in answers:
        self.counts['conflicting'] += answers[normal] != problem.answer
        if selection.duplicates == 'drop':
          self.counts['seen'] += 1
          continue
      answers.setdefault(normal, problem.answer)
      rows.append(_Row(source, index, problem, solution, normal))
    self.counts['rows'] += len(source)
    self.counts['bad'] += len(bad)
    refuse_or_tell(name, bad, len(source), selection.bad_rows)
    for found, end in zip(with_ends, ('prefix', 'suffix'), strict=True):
      if not found:
        raise errors.UserError(
          f'task {name!r}: no question has question_{end}='
          f'{getattr(fields, end)!r}; copy it from the file'
        )
    return rows

  def _tell(self, name: str, done: int, total: int) -> None:
    """A line in the log now and then, of a large file."""
    if time.monotonic() - self._told > _LOG_SECONDS:
      self._told = time.monotonic()
      logging.info('task %r: %s of %s rows read', name, done, total)

  def _without_overlap(self, name, train, selection, tasks) -> list[_Row]:
    """Training rows that no evaluation set has."""
    if not tasks or selection.heldout == 'all':
      return train
    questions = overlap.EvaluationQuestions(
      {task.name: _questions(name, task) for task in tasks}
    )
    kept, found, per_task = [], [], collections.Counter()
    matches = questions.matches([row.problem.question for row in train])
    for row, match in zip(train, matches, strict=True):
      if match is None:
        kept.append(row)
        continue
      per_task[match.task] += 1
      how = 'is' if match.exact else 'shares a passage with'
      found.append(f'{row.where} {how} {match.id}')
    if found:
      counts = ', '.join(f'{n} with {t}' for t, n in sorted(per_task.items()))
      text = (
        f'task {name!r}: {len(found)} training rows overlap with evaluation '
        f'sets ({counts}): {errors.some_of(found)}'
      )
      if selection.overlap == 'stop':
        raise errors.UserError(
          f"{text}. Take them out, or leave them out with overlap='drop'"
        )
      logging.warning('%s', text)
    self.counts['overlapping'] = len(found)
    return kept

  def _of_wanted_difficulty(self, name, train, selection, folder) -> list[_Row]:
    """Training rows whose measured pass rate is in the range."""
    if not selection.pass_rates or not train:
      return train
    rates = PassRates(selection.pass_rates, folder)
    kept, measured = [], 0
    for row in train:
      rate = rates.of(row.problem)
      measured += rate is not None
      if rate is None:
        wanted = selection.unmeasured == 'keep'
      else:
        wanted = selection.min_pass_rate <= rate <= selection.max_pass_rate
      if wanted:
        kept.append(row)
    if not measured:
      raise errors.UserError(
        f'task {name!r}: {selection.pass_rates} has none of its '
        f'{len(train)} training problems, by question or by id such as '
        f'{train[0].problem.id!r}; measure this task'
      )
    self.counts['filtered'] = len(train) - len(kept)
    return kept


def _split(rows: list[_Row], heldout: str) -> tuple[list[_Row], list[_Row]]:
  """(training rows, held-out rows) of one source."""
  if heldout == 'all':
    return [], rows
  rows = _in_order(rows)
  if heldout == 'none':
    return rows, []
  splits = {'train': [], 'heldout': []}
  for row in rows:
    splits[base.split_of(row.normal)].append(row)
  return splits['train'], splits['heldout']


def _in_order(rows: list[_Row]) -> list[_Row]:
  """Rows in an order of their content, whatever the file's."""

  def key(row):
    digest = hashlib.blake2b(row.normal.encode(), digest_size=16).digest()
    # The rest parts equal questions, where they are kept.
    return digest, row.problem.question, row.problem.answer, row.problem.id

  return sorted(rows, key=key)


def _check_ids(name, train: list[_Row], heldout: list[_Row]) -> None:
  """Ids of the two sources must differ, or one would pass for the other."""
  places = {row.problem.id: row for row in train}
  for row in heldout:
    if row.problem.id in places:
      raise errors.UserError(
        f'task {name!r}: {row.where} and {places[row.problem.id].where} have '
        f'the same id {row.problem.id!r}; name a field that tells them apart '
        '(fields.id)'
      )


def _questions(name: str, task: base.Task) -> list[tuple[str, str]]:
  """(id, question) of all held-out problems of an evaluation set."""
  if task.num_heldout is None:
    raise errors.UserError(
      f'task {name!r}: overlap_with names {task.name!r}, whose problems have '
      'no end; name evaluation sets'
    )
  problems = (task.problem(i, 'heldout') for i in range(task.num_heldout))
  return [(problem.id, problem.question) for problem in problems]


def from_options(
  name: str,
  seed: int,
  options: Mapping[str, Any],
  overlap_with: Sequence[base.Task] = (),
) -> DatasetTask:
  """The task that a config describes.

  Args:
    name: of the task.
    seed: of the order of training.
    options: `source`, a name in `sources.SOURCES`, and that source's own
      options; any of these again with `heldout_` before it, for held-out
      problems in a place of their own; `fields`, `question_prefix` and
      `question_suffix` (see `Fields`); `verifier` and `verifier_options`; the
      fields of `Selection`.
    overlap_with: see `DatasetTask`.

  Returns:
    The task.

  Raises:
    UserError: an unknown option or source, or see `DatasetTask`.
  """
  options = dict(options)
  kind = options.pop('source', None)
  if not isinstance(kind, str) or kind not in SOURCES:
    raise errors.UserError(
      f'task {name!r}: source={kind!r} is unknown; use one of '
      f'{", ".join(sorted(SOURCES))}'
    )
  of_source = arguments.names_of(SOURCES[kind])
  place, heldout_place, rest = {}, {}, {}
  for key, value in options.items():
    bare = key.removeprefix('heldout_')
    if key in of_source:
      place[key] = value
    elif bare != key and bare in of_source:
      heldout_place[bare] = value
    else:
      rest[key] = value
  choices = {
    f.name: rest.pop(f.name)
    for f in dataclasses.fields(Selection)
    if f.name in rest
  }
  arguments.check(f'task {name!r}', Selection, choices)
  if heldout_place:
    if 'heldout' in choices:
      raise errors.UserError(
        f'task {name!r} has heldout={choices["heldout"]!r} and '
        f'heldout_{next(iter(heldout_place))}: use one of them'
      )
    choices['heldout'] = 'source'
  elif choices.get('heldout') == 'source':
    raise errors.UserError(
      f"task {name!r}: heldout='source' needs that source, as in heldout_path"
    )
  fields = Fields.of(
    rest.pop('fields', {}),
    task=name,
    prefix=rest.pop('question_prefix', ''),
    suffix=rest.pop('question_suffix', ''),
  )
  verifier = rest.pop('verifier', 'exact')
  verifier_options = rest.pop('verifier_options', {})
  if rest:
    known = [*of_source, *(f'heldout_{key}' for key in of_source)]
    known += [f.name for f in dataclasses.fields(Selection)]
    known += ['fields', 'question_prefix', 'question_suffix', 'overlap_with']
    known += ['verifier', 'verifier_options', 'source', 'seed']
    raise errors.UserError(
      f'task {name!r} has no option {sorted(rest)[0]!r}; known options with '
      f'source={kind!r}: {", ".join(known)}'
    )
  if not isinstance(verifier_options, Mapping):
    raise errors.UserError(
      f'task {name!r}: verifier_options={verifier_options!r} must be a '
      'mapping, as in dict(boxed_only=True)'
    )
  if not isinstance(verifier, Verifier):
    verifier = get_verifier(verifier, **verifier_options)
  return DatasetTask(
    name,
    seed,
    source=_source(name, kind, place),
    heldout_source=(
      _source(name, kind, {**place, **heldout_place}) if heldout_place else None
    ),
    fields=fields,
    verifier=verifier,
    selection=Selection(**choices),
    overlap_with=overlap_with,
    folder=place.get('folder', ''),
  )


def _source(name: str, kind: str, options: Mapping[str, Any]) -> Source:
  arguments.check(f'task {name!r}', SOURCES[kind], options)
  try:
    return SOURCES[kind](**options)
  except TypeError as error:
    raise errors.UserError(
      f'task {name!r}: source={kind!r} needs more options ({error}); give path'
    ) from error
