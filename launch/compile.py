r"""Compiles a recipe's programs for a machine that is not here: does it fit?

  python -m launch.compile --config=configs/32b.py --target=v5p-128

Prints, for the update, the log-prob pass and the rollout engine's prefill and
decode, the memory of a device, what the devices send one another, the roofline
seconds of a whole iteration, and what a turn of decode moves through memory
against weights and caches once. Targets: v5e-N, v5p-N, v6e-N, tpu7x-N, h100-N
(and gcloud's and the compiler's own names). Needs the compilers, not the
machines: `pip install jax[tpu]` or `pip install jax-cuda12-plugin`, of this
jax's version, best in a virtual environment of its own.

Exit status: 0 it fits, 1 it does not fit or (with --check) differs, 2 bad
input.
"""

import re
import sys

from metastone_jax.compile_check import machine

machine.prepare()  # before anything imports jax

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from launch import cli  # noqa: E402
from metastone_jax.compile_check import (  # noqa: E402
  accounting,
  programs,
  report,
  targets,
)
from metastone_jax.compile_check.plan import Plan  # noqa: E402
from metastone_jax.training import loop  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Recipe, for example configs/32b.py.', lock_config=True
)
_TARGET = flags.DEFINE_string(
  'target', None, 'Machine, for example v5p-128; "list" prints all names.'
)
_PROGRAMS = flags.DEFINE_list(
  'programs', None, 'Only these: update, log_prob, prefill, decode.'
)
_WRITE = flags.DEFINE_bool('write', False, 'Put the result into --file.')
_CHECK = flags.DEFINE_bool(
  'check', False, 'Compare with --file; exit 1 where a size differs by 10 %.'
)
_FILE = flags.DEFINE_string('file', 'docs/pod_fit.md', 'The file of results.')
_MEDIAN = flags.DEFINE_float(
  'median_response',
  None,
  'Median response length in tokens, for the times; default: a quarter of the '
  'limit.',
)
_SIGMA = flags.DEFINE_float(
  'sigma_response', 0.6, 'Standard deviation of its logarithm.'
)
_TOLERANCE = 0.1


def main() -> None:
  """Parses, compiles, prints."""
  if _TARGET.value == 'list':
    print('\n'.join(targets.names()))
    return
  if _CONFIG.value is None or _TARGET.value is None:
    cli.fail(
      '--config and --target are needed; for example '
      '--config=configs/32b.py --target=v5p-128'
    )
  target = targets.parse(_TARGET.value)
  recipe = loop.parse_recipe(_CONFIG.value, layout=target.name)
  limit = recipe.data.max_response_length
  lengths = accounting.Lengths(_MEDIAN.value or limit / 4, _SIGMA.value, limit)
  plan = Plan.make(recipe, target, lengths)
  found = programs.recipe_programs(
    plan,
    machine.devices(target),
    machine.devices(target.one_host()),
  )
  wanted = _PROGRAMS.value or [program.name for program in found]
  unknown = set(wanted) - {program.name for program in found}
  if unknown:
    cli.fail(
      f'--programs={",".join(sorted(unknown))}: this recipe has '
      f'{", ".join(program.name for program in found)}'
    )
  rows = []
  for program in found:
    if program.name not in wanted:
      continue
    print(f'compiling {program.name} ...', file=sys.stderr, flush=True)
    rows.append(
      report.Row(
        program,
        machine.compile_program(
          program.name, program.lower(), program.devices, program.turns
        ),
      )
    )
  print(report.text(plan, rows))
  failed = [row.program.name for row in rows if not row.fits(target)]
  if _WRITE.value:
    # Of the whole section, whatever part of it is new.
    command = re.sub(r' --programs=\S+', '', cli.command_line('launch.compile'))
    report.write(_FILE.value, plan, rows, command, found)
  if _CHECK.value:
    sizes = report.read_sizes(_FILE.value)
    different = report.differences(plan, rows, sizes, _TOLERANCE)
    for line in different:
      print(f'differs from {_FILE.value}: {line}', file=sys.stderr)
    failed += different
  elif failed:
    print(f'does not fit {target.name}: {", ".join(failed)}', file=sys.stderr)
  sys.exit(1 if failed else 0)


if __name__ == '__main__':
  cli.run(main)
