"""Temporaries of the 1.5B update at 32k tokens: ours, and without each saving.

  python -m tests.benchmarks.update_memory [--target=h100-1]

One trajectory of 2,048 + 30,720 tokens a micro-batch of configs/1p5b.py,
compiled for one device from shapes alone (nothing is allocated or run) with
the compilers of `launch.compile`. The naive forms keep every activation of the
forward pass (remat 'none') or all logits of the row (the reference of
kernels/token_log_prob in its place), or both. Their sizes may be larger than
any device: the compiler says what it would need.
"""

import argparse
import contextlib
import importlib
import unittest.mock

from metastone_jax.compile_check import machine

machine.prepare()  # before anything imports jax

import jax  # noqa: E402

from kernels.token_log_prob import reference  # noqa: E402
from metastone_jax.compile_check import (  # noqa: E402
  accounting,
  plan,
  programs,
  targets,
)
from metastone_jax.model import transformer  # noqa: E402
from metastone_jax.training import loop  # noqa: E402

FORMS = {
  # name: remat, whether all logits exist at once
  'ours: remat full, logits in chunks': ('full', False),
  'naive logits': ('full', True),
  'no remat': ('none', False),
  'naive logits and no remat': ('none', True),
}


def _naive(hidden_BTD, kernel_DV, target_BT, *, temperature, **unused):
  return reference.token_log_prob(
    hidden_BTD,
    kernel_DV.astype(hidden_BTD.dtype),
    target_BT,
    temperature[:, None, None],
  )


def measure(target: targets.Target, remat: str, naive: bool):
  """The compiled update in one form."""
  config = importlib.import_module('configs.1p5b').get_config()
  config.model.remat = remat
  config.data.max_prompt_length = 2048
  config.data.max_response_length = 30_720
  config.phases.joint.sequences_per_microbatch = 1
  long_rows = plan.Plan.make(
    loop.parse_recipe(config),
    target,
    accounting.Lengths(7_680, 0.6, 30_720),
  )
  update, *_ = programs.recipe_programs(
    long_rows, machine.devices(target), machine.devices(target.one_host())
  )
  form = contextlib.nullcontext()
  if naive:
    form = unittest.mock.patch.object(
      transformer.log_prob_lib, 'token_log_prob', _naive
    )
  with form:
    lowered = update.lower()
  return machine.compile_program('update', lowered, update.devices)


def main() -> None:
  """Compiles every form, prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--target', default='h100-1')
  target = targets.parse(parser.parse_args().target)
  memory = target.chip.memory
  print(
    f'jax {jax.__version__}, {target.name} ({memory / 1e9:.2f} GB): update of '
    'configs/1p5b.py, one row of 32,768 tokens a micro-batch, GB = 1e9 bytes\n'
  )
  print('| form | temporaries GB | of ours | compile s |')
  print('| --- | ---: | ---: | ---: |')
  ours = None
  for name, (remat, naive) in FORMS.items():
    found = measure(target, remat, naive)
    ours = ours or found.temporaries
    size = f'{found.temporaries / 1e9:.2f} | {found.temporaries / ours:.1f}'
    if found.refused:
      size = f'refused: {found.refused} | '
    print(f'| {name} | {size} | {found.seconds:.0f} |', flush=True)


if __name__ == '__main__':
  main()
