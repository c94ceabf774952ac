"""What a config says of the rows that become problems."""

import dataclasses

from metastone_jax import errors


@dataclasses.dataclass(frozen=True)
class Selection:
  """Which rows of a source become problems, and of which split.

  Attributes:
    heldout: 'hash' (one problem in eight, by its question), 'all' (an
      evaluation set, never trained on) or 'none'. With a held-out source of
      its own, 'source'.
    bad_rows: 'stop' (an error that names them) or 'skip' (a warning); prompts
      that are too long are bad rows too.
    duplicates: 'drop' rows whose question came before, or 'keep' them.
    overlap: 'drop' training rows that overlap with evaluation sets (see
      `overlap`), or 'stop'.
    pass_rates: file of measured pass rates (see `pass_rates`), in the folder
      of the rows where its path is relative; '' = none.
    min_pass_rate: training rows solved less often are left out.
    max_pass_rate: training rows solved more often are left out.
    unmeasured: 'keep' or 'drop' training rows that nobody measured.
  """

  heldout: str = 'hash'
  bad_rows: str = 'stop'
  duplicates: str = 'drop'
  overlap: str = 'drop'
  pass_rates: str = ''
  min_pass_rate: float = 0.0
  max_pass_rate: float = 1.0
  unmeasured: str = 'keep'

  def check(self, task: str) -> None:
    """UserError for a value that is none of the above."""
    choices = {
      'heldout': ('hash', 'all', 'none', 'source'),
      'bad_rows': ('stop', 'skip'),
      'duplicates': ('drop', 'keep'),
      'overlap': ('drop', 'stop'),
      'unmeasured': ('keep', 'drop'),
    }
    rules = [
      (name, getattr(self, name) in known, f'one of {", ".join(known)}')
      for name, known in choices.items()
    ]
    low, high = self.min_pass_rate, self.max_pass_rate
    rules += [
      (name, type(value) in (int, float) and 0 <= value <= 1, 'in [0, 1]')
      for name, value in (('min_pass_rate', low), ('max_pass_rate', high))
    ]
    errors.check_fields(f'task {task!r}: ', self, rules)
    if low > high:
      raise errors.UserError(
        f'task {task!r}: min_pass_rate={low} is above max_pass_rate={high}'
      )
    if (low > 0 or high < 1) and not self.pass_rates:
      raise errors.UserError(
        f'task {task!r}: min_pass_rate and max_pass_rate need pass_rates, the '
        'file of measured ones'
      )
