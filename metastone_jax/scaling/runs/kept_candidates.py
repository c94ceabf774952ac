"""Candidates of a `sample` point that are drawn already, kept on disk.

Contract: a folder of segments, each an .npz written whole and never again. A
candidate is a pure function of parameters, seed, draw index, number and budget,
so one that is kept need not be drawn: who was interrupted goes on. (Its score
but for the last bit, which depends on what is drawn beside it.) It keeps the
logits of step marks too, which `training.loop.KeptResponses` does not.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from metastone_jax.sampling.engine import Candidate, Request
from metastone_jax.scaling.job import REMOVE_POINT
from metastone_jax.telemetry import files
from metastone_jax.training import loop

# One a token; all candidates of a segment behind one another.
_TOKEN_ARRAYS = ('token_R', 'log_prob_R', 'forced_R', 'step_logit_R')
_ARRAYS = ('number', 'reason', 'last_logit')


class KeptCandidates(loop.Segments):
  """The folder of one point.

  Attributes:
    found: (draw index, number) -> arrays of a candidate, from the folder.

  Raises:
    UserError: a segment that is broken.
  """

  def __init__(self, folder: epath.Path):
    super().__init__(folder)
    self.found: dict[tuple[int, int], dict] = {}
    for path in sorted(files.children(folder)):
      if path.suffix == '.npz' and not path.name.startswith('.'):
        self._read(path)

  def _write(self, name: str, items: Sequence[Candidate]) -> None:
    arrays = {
      key: np.concatenate([getattr(c, key) for c in items])
      for key in _TOKEN_ARRAYS
    }
    for key in _ARRAYS:
      arrays[key] = np.array([getattr(c, key) for c in items])
    arrays['draw'] = np.array([c.request.draw for c in items])
    arrays['length'] = np.array([len(c.token_R) for c in items])
    files.write_arrays(self._folder / f'{name}.npz', arrays, compress=False)

  def remove(self) -> None:
    """Everything is in other files now."""
    self._fresh = []
    if self._folder.exists():
      self._folder.rmtree()

  def _read(self, path: epath.Path) -> None:
    with files.reading_arrays(path, 'segment of candidates', REMOVE_POINT) as f:
      ends = np.cumsum(f['length'])[:-1]
      parts = {name: np.split(f[name], ends) for name in _TOKEN_ARRAYS}
      singles = {name: f[name].tolist() for name in _ARRAYS}
      for i, draw in enumerate(f['draw'].tolist()):
        one = {name: x[i] for name, x in (parts | singles).items()}
        self.found[draw, one['number']] = one


@dataclasses.dataclass(frozen=True)
class BudgetSampler(loop.Sampler):
  """Draws with a budget of thinking tokens what is not kept, and keeps it.

  The budget goes with the requests: it is data there, so all budgets share
  their compiled programs.

  Attributes:
    budget: thinking tokens; None = the configured one.
    kept: of the point; None = nothing is kept.
    drawn: all candidates so far, kept ones too.
  """

  budget: int | None = None
  kept: KeptCandidates | None = None
  drawn: list[Candidate] = dataclasses.field(default_factory=list)

  def draw(self, params, requests: Sequence[Request]) -> Iterator[Candidate]:
    """As `Sampler.draw`; what is kept comes first."""
    found = {} if self.kept is None else self.kept.found
    left = []
    for request in requests:
      asked = dataclasses.replace(request, thinking_budget=self.budget)
      missing = []
      for number in request.candidates:
        arrays = found.get((request.draw, number))
        if arrays is None:
          missing.append(number)
          continue
        candidate = Candidate(request=asked, config=self.config, **arrays)
        self.drawn.append(candidate)
        yield candidate
      if missing:
        left.append(dataclasses.replace(asked, candidates=tuple(missing)))
    if not left:
      return
    for candidate in super().draw(params, left):
      self.drawn.append(candidate)
      if self.kept is not None:
        self.kept.add(candidate)
      yield candidate
