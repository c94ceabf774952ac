"""Where the results of launch.evaluate are."""

import dataclasses
import re

from etils import epath

from launch.evaluation_keys import Keys


@dataclasses.dataclass(frozen=True)
class Files:
  """Where the results of one task are.

  Attributes:
    out: the folder.
    task: its name, with the split and the form; see `plain`.
    size: problems and samples, as '512x64'.
    step: of the checkpoint.
    kind: of the plan, '' or as '-effort_low'.
    keys: of everything that draws and verdicts depend on.
    token_ids: whether responses are kept with their ids.
  """

  out: epath.Path
  task: str
  size: str
  step: int
  kind: str
  keys: Keys
  token_ids: bool

  @property
  def samples(self) -> epath.Path:
    """Scores and verdicts; last written."""
    return self.out / f'{self._judged}.npz'

  @property
  def results(self) -> epath.Path:
    """Responses in the released format."""
    return self.out / f'{self._judged}{self._ids}.jsonl'

  @property
  def pass_rates(self) -> epath.Path:
    """Of the problems."""
    return self.out / f'{self._judged}-pass_rates.jsonl'

  @property
  def kept(self) -> epath.Path:
    """Responses, for a larger evaluation and for other verdicts."""
    return (
      self.out
      / f'{self.task}-step{self.step}-{self.keys.draws}{self._ids}-responses'
    )

  @property
  def summary(self) -> epath.Path:
    """Its numbers."""
    return self.out / f'{self.task}{self.kind}.json'

  @property
  def report(self) -> epath.Path:
    """Folder of its report."""
    return self.out / f'report-{self.task}{self.kind}'

  @property
  def _judged(self) -> str:
    return (
      f'{self.task}-{self.size}-step{self.step}{self.kind}-'
      f'{self.keys.draws}-{self.keys.verdicts}'
    )

  @property
  def _ids(self) -> str:
    return '-token_ids' if self.token_ids else ''

  def done(self) -> bool:
    """Whether nothing is left to draw or to judge."""
    return (
      self.samples.exists()
      and self.results.exists()
      and self.pass_rates.exists()
    )


def plain(task: str) -> str:
  """A task's name as a part of a file's: `gym:NAME` has no place in one."""
  return re.sub(r'[^\w.+-]', '-', task)
