"""Operators in all their forms: timed on this machine, or compiled for one.

  python -m tests.benchmarks.kernels                    (needs an accelerator)
  python -m tests.benchmarks.kernels --target=v5p-8     (needs its compiler)

Timed: milliseconds of a run, share of the device's bandwidth and of its bf16
peak that the operator's own least traffic and arithmetic make of it, how often
the XLA form fits into it, and how far its results are from the XLA form's: the
largest difference of any result over that result's largest value. Compiled:
temporaries, bytes through the device's memory as the compiled module tells them
(compile_check/traffic.py), and the roofline milliseconds: of the operator
(least bytes and arithmetic) and of those bytes. A TPU kernel's bytes are its
own estimate (decode attention's is for full caches, of which it reads only what
is written); a Triton kernel's are its operands and results, each once, whatever
part of them it reads.
"""

import argparse
import importlib
import statistics
import time

from metastone_jax.compile_check import machine

_PARSER = argparse.ArgumentParser(description=__doc__.splitlines()[0])
_PARSER.add_argument('--target', help='described machine, see launch.compile')
_PARSER.add_argument('--operators', nargs='+', default=None)
_PARSER.add_argument(
  '--models', nargs='+', default=['1p5b', '7b', '32b'], help='widths'
)
_PARSER.add_argument('--forms', nargs='+', default=None)
_PARSER.add_argument('--repeats', type=int, default=10)
OPTIONS = _PARSER.parse_args()
if OPTIONS.target:
  machine.prepare()  # before anything imports jax

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from metastone_jax.compile_check import targets, traffic  # noqa: E402
from tests.benchmarks import chips  # noqa: E402
from tests.benchmarks.kernels.case import Case  # noqa: E402

OPERATORS = ('decode_attention', 'scoring_head', 'token_log_prob')


def cases() -> list[Case]:
  """All that the flags ask for."""
  found = []
  for operator in OPTIONS.operators or OPERATORS:
    module = importlib.import_module(f'tests.benchmarks.kernels.{operator}')
    for model in OPTIONS.models:
      found += module.cases(model)
  return [
    case for case in found if not OPTIONS.forms or case.form in OPTIONS.forms
  ]


def time_all(found: list[Case]) -> None:
  """Prints what each case takes here."""
  device = jax.devices()[0]
  name, chip = chips.chip_of(device.device_kind)
  print(f'jax {jax.__version__} on {device.device_kind}, peaks of {name}\n')
  print(
    '| operator | shape | direction | form | ms | GB/s % | FLOP/s % | XLA | '
    'off |'
  )
  print('| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |')
  medians, results = {}, {}
  for case in found:
    if device.platform not in case.platforms:
      continue
    placed = case.on(jax.devices())
    if placed is None:
      continue
    function, shardings = placed
    function = jax.jit(function)
    arguments = jax.device_put(case.make(0), tuple(shardings))
    try:
      result = jax.block_until_ready(function(*arguments))
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      print(f'{_name(case)} does not fit | | | | |', flush=True)
      continue
    seconds = []
    for _ in range(OPTIONS.repeats):
      started = time.perf_counter()
      jax.block_until_ready(function(*arguments))
      seconds.append(time.perf_counter() - started)
    if case.form == 'xla':
      # Both directions of one shape fit beside what is timed.
      results = {k: v for k, v in results.items() if k[:2] == _key(case)[:2]}
      results[_key(case)] = result
    off = _off(result, results.get(_key(case)))
    del result
    median = statistics.median(seconds)
    medians[_key(case), case.form] = median
    print(
      f'{_name(case)} {1e3 * median:.3f} | '
      f'{100 * case.bytes / chip.memory_bandwidth / median:.1f} | '
      f'{100 * case.flops / chip.flops / median:.1f} | '
      f'{medians.get((_key(case), "xla"), float("nan")) / median:.2f} | '
      f'{off:.1e} |',
      flush=True,
    )


def _off(result, other) -> float:
  """The largest difference of any leaf, over the largest value of that leaf."""
  if other is None:
    return float('nan')
  pairs = zip(jax.tree.leaves(result), jax.tree.leaves(other), strict=True)
  return max(float(_leaf_off(a, b)) for a, b in pairs)


@jax.jit
def _leaf_off(a: jax.Array, b: jax.Array) -> jax.Array:
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))


def compile_all(found: list[Case], target: targets.Target) -> None:
  """Prints what the compiler of a machine makes of each case."""
  devices = machine.devices(target)
  chip = target.chip
  print(f'jax {jax.__version__}, compiled for {target.name}, of one device\n')
  print(
    '| operator | shape | direction | form | temporaries GB | memory GB | '
    'least GB | roofline ms | of those bytes ms | compile s |'
  )
  print('| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |')
  for case in found:
    if chip.platform not in case.platforms:
      continue
    placed = case.on(devices)
    if placed is None:
      continue
    function, shardings = placed
    arguments = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
      for x, sharding in zip(case.arguments, shardings, strict=True)
    ]
    lowered = jax.jit(function).lower(*arguments)
    started = time.monotonic()
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      # A kernel's blocks that do not fit on the chip are no answer.
      if 'RESOURCE_EXHAUSTED' not in str(error) or 'vmem' in str(error):
        raise
      print(f'{_name(case)} does not fit | | | | | |', flush=True)
      continue
    seconds = time.monotonic() - started
    moved = traffic.memory_traffic(compiled.as_text(), case.turns)
    roof = max(case.flops / chip.flops, case.bytes / chip.memory_bandwidth)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    print(
      f'{_name(case)} {temporaries / 1e9:.3f} | {moved / 1e9:.3f} | '
      f'{case.bytes / 1e9:.3f} | {1e3 * roof:.3f} | '
      f'{1e3 * moved / chip.memory_bandwidth:.3f} | {seconds:.1f} |',
      flush=True,
    )


def _key(case: Case):
  return case.operator, case.shape, case.direction


def _name(case: Case) -> str:
  return f'| {case.operator} | {case.shape} | {case.direction} | {case.form} |'


def main() -> None:
  """Times or compiles."""
  found = cases()
  if OPTIONS.target:
    compile_all(found, targets.parse(OPTIONS.target))
  else:
    time_all(found)


if __name__ == '__main__':
  main()
