"""Where the results of launch.evaluate are."""

import dataclasses

from etils import epath


@dataclasses.dataclass(frozen=True)
class Files:
  """Where the results of one task are.

  Attributes:
    out: the folder.
    task: its name, with the split and the form.
    key: of everything the draws depend on.
    token_ids: whether responses are kept with their ids.
  """

  out: epath.Path
  task: str
  key: str
  token_ids: bool

  @property
  def samples(self) -> epath.Path:
    """Scores and verdicts; last written."""
    return self.out / f'{self.task}-{self.key}.npz'

  @property
  def results(self) -> epath.Path:
    """Responses in the released format."""
    return self.out / f'{self.task}-{self.key}{self._ids}.jsonl'

  @property
  def pass_rates(self) -> epath.Path:
    """Of the problems."""
    return self.out / f'{self.task}-{self.key}-pass_rates.jsonl'

  @property
  def kept(self) -> epath.Path:
    """Responses of an evaluation that is not done, however many it wants."""
    draws = self.key.split('x', 1)[1].split('-', 1)[1]
    return self.out / f'{self.task}-{draws}{self._ids}-responses'

  @property
  def summary(self) -> epath.Path:
    """Its numbers."""
    return self.out / f'{self.task}{self._kind}.json'

  @property
  def report(self) -> epath.Path:
    """Folder of its report."""
    return self.out / f'report-{self.task}{self._kind}'

  @property
  def _kind(self) -> str:
    return '-released' if '-released' in self.key else ''

  @property
  def _ids(self) -> str:
    return '-token_ids' if self.token_ids else ''

  def done(self) -> bool:
    """Whether nothing is left to draw."""
    return (
      self.samples.exists()
      and self.results.exists()
      and self.pass_rates.exists()
    )
