"""One prompt cache for k candidates against a copy for each.

`shared` is one problem of 32 candidates, `copies` 32 problems of one: the same
prompt, read and kept once or 32 times. The tokens are the same, which is
checked. Bytes are those of the key/value caches, prompts and own together.
"""

import dataclasses

import jax

from metastone_jax.parallel import Sharder
from metastone_jax.sampling.engine import EngineConfig, programs
from metastone_jax.sampling.engine.engine import bucket
from tests.benchmarks.sampler import timing, work

K = 32
WORKS = tuple(
  work.Work(model, 1, K, 512, longest, K)
  for model in ('small', 'medium')
  for longest in (64, 512)
)


def cache_bytes(one: work.Work, prompts: int) -> int:
  """Of the caches of the engine at the longest that it gets."""
  shape = EngineConfig(num_slots=K, num_prompts=prompts)
  made = programs.Programs(
    work.MODELS[one.model],
    one.sampling,
    Sharder(),
    shape.turns,
    1,
    shape.prefill_tokens,
  )
  slots, _ = jax.eval_shape(
    lambda: made.empty(K, prompts, bucket(one.prompt), bucket(one.longest))
  )
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(slots.caches))


def run(repeats: int, larger: bool) -> None:
  """Prints the tables."""
  print(f'k = {K} candidates: copies of the prompt over one shared')
  for one in WORKS:
    if one.model == 'medium' and not larger:
      continue
    (request,) = one.requests()
    copies = [dataclasses.replace(request, candidates=(n,)) for n in range(K)]
    forms = {
      'shared': work.engine_form(one, num_prompts=1),
      'copies': work.engine_form(one, copies, num_prompts=K),
    }
    drawn = {name: form(1) for name, form in forms.items()}
    work.check_same(drawn['shared'], drawn['copies'])
    found = timing.take_turns(
      {
        name: timing.timed(lambda form=form: work.count(form(1)))
        for name, form in forms.items()
      },
      repeats,
    )
    sizes = [cache_bytes(one, prompts) / 1e6 for prompts in (1, K)]
    print(f'{work.describe(one.model)}\n{one}')
    print('\n'.join(timing.table(found, 'shared')))
    print(
      f'  caches: shared {sizes[0]:.1f} MB, copies {sizes[1]:.1f} MB, '
      f'{sizes[1] / sizes[0]:.1f} x',
      flush=True,
    )
