"""Our sampler against another one: same weights, prompts, lengths, batch.

Two works each. With all responses of one length both draw greedily: the share
of equal tokens is printed, of float32 and two summation orders it need not be
1. With ends at random both draw at temperature 1, each with its own random
numbers: lengths are equal in distribution, so compare tokens a second.

`engine` and `program` (`sampling.sample`) are ours. They score while they draw
and return log-probs: google-tunix does neither here, transformers scores in a
second pass.
"""

import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from tests.benchmarks.sampler import peers, timing, work

SIZES = ('small', 'wide')
LARGER = ('medium',)
SCRIPTS = pathlib.Path(__file__).parent


def works(model: str, problems: int) -> tuple[work.Work, work.Work]:
  """Equal lengths, ends at random."""
  return (
    work.Work(model, 4, 8, 128, 128, 32),
    work.Work(model, problems, 8, 128, 256, 32, ends=64, temperature=1.0),
  )


def agreement(ours: work.Drawn, theirs: work.Drawn) -> tuple[float, float]:
  """Share of equal tokens, and of responses that are equal throughout."""
  equal = [
    np.mean(
      np.equal(a[: len(b)], b[: len(a)]) if len(a) and len(b) else [False]
    )
    for a, b in ((ours[key][0], theirs[key][0]) for key in ours)
  ]
  return float(np.mean(equal)), float(np.mean(np.equal(equal, 1)))


def _compare(
  name: str,
  command: Sequence[str],
  forms: Sequence[str],
  one: work.Work,
  repeats: int,
  folder: pathlib.Path,
) -> None:
  """One table."""
  ours = {'engine': work.engine_form(one), 'program': work.program_form(one)}
  print(f'{work.describe(one.model)}\n{one}', flush=True)
  with peers.Peer(command, peers.write_job(folder, one)) as peer:
    first = {key: form(0) for key, form in ours.items()}
    work.check_same(first['engine'], first['program'])
    for form in forms:
      _, drawn = peer.draw(form, 0)
      if one.temperature == 0:
        _report_same(f'{name} {form}', first['engine'], drawn)
    seeds = {key: iter(range(1, repeats + 1)) for key in (*ours, *forms)}

    def own(key):
      def tokens():
        return work.count(ours[key](next(seeds[key])))

      return timing.timed(tokens)

    def their(form):
      def run():
        seconds, drawn = peer.draw(form, next(seeds[form]))
        return seconds, work.count(drawn)

      return run

    found = timing.take_turns(
      {key: own(key) for key in ours}
      | {f'{name} {form}': their(form) for form in forms},
      repeats,
    )
    print('\n'.join(timing.table(found, 'engine')))
    print(f'  [{peer.versions}]', flush=True)


def _report_same(name: str, ours: work.Drawn, theirs: work.Drawn) -> None:
  tokens, whole = agreement(ours, theirs)
  print(
    f'  {name}: {100 * tokens:.2f} % of greedy tokens are ours, '
    f'{100 * whole:.0f} % of responses throughout'
  )
  pairs = [
    (ours[key][1], theirs[key][1])
    for key in ours
    if np.array_equal(ours[key][0], theirs[key][0])
  ]
  if pairs and np.isfinite(pairs).all():
    gap = max(abs(a - b) for a, b in pairs)
    scored = sum(a > 0 for a, _ in pairs)
    print(f'    scores of these within {gap:.1e}, {scored} of them with marks')


def _all(name, command, forms, repeats, larger, problems) -> None:
  with tempfile.TemporaryDirectory() as folder:
    for model in SIZES + LARGER * larger:
      for one in works(model, problems):
        _compare(name, command, forms, one, repeats, pathlib.Path(folder))


def tunix(repeats: int, python: str, larger: bool) -> None:
  """Against google-tunix's sampler."""
  print(
    'google-tunix: target 3. It does not score and returns no log-probs; ours '
    'does both in these times'
  )
  if not shutil.which(python):
    print('  not run: give --tunix_python, a Python with google-tunix')
    return
  command = (python, str(SCRIPTS / 'peer_tunix.py'))
  _all('tunix', command, ('slots', 'all'), repeats, larger, problems=16)


def transformers(repeats: int, larger: bool) -> None:
  """Against transformers' generate and a second scoring pass."""
  print(
    'transformers: target 5 over `released`: two samples a call of generate, '
    'then each text through a second copy; `batched`: all in one call and one '
    'pass'
  )
  command = (sys.executable, str(SCRIPTS / 'peer_transformers.py'))
  forms = ('released', 'batched')
  _all('transformers', command, forms, repeats, larger, problems=8)
