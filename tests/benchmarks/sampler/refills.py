"""The engine against a fixed batch, on responses of very unequal length.

Same weights, prompts, draws and tokens, which is checked. `fixed` is
`sampling.sample`, as many candidates at a time as the engine has slots, each
batch as long as its longest; the engine refills slots as they end.
"""

import functools

from tests.benchmarks.sampler import timing, work

TARGET = 1.5
WORKS = (
  work.Work('tiny', 64, 4, 24, 512, 32, ends=64, temperature=1.0),
  work.Work('small', 32, 4, 64, 256, 32, ends=48, temperature=1.0),
)


def run(repeats: int) -> None:
  """Prints the tables."""
  print(f'Refills: the engine over a fixed batch, target {TARGET}')
  for one in WORKS:
    forms = {
      'fixed': work.program_form(one),
      'engine': work.engine_form(one),
    }
    drawn = {name: form(7) for name, form in forms.items()}
    work.check_same(drawn['fixed'], drawn['engine'])
    lengths = sorted(len(token) for token, _ in drawn['fixed'].values())
    print(f'{work.describe(one.model)}\n{one}')
    print(
      f'  lengths: mean {sum(lengths) / len(lengths):.0f}, median '
      f'{lengths[len(lengths) // 2]}, longest {lengths[-1]}'
    )

    def draw(form):
      return work.count(form(7))

    found = timing.take_turns(
      {
        name: timing.timed(functools.partial(draw, form))
        for name, form in forms.items()
      },
      repeats,
    )
    print('\n'.join(timing.table(found, 'engine')), flush=True)
