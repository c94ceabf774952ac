r"""Trains a reflective model: warm-up, joint GRPO + SPR, evaluation, report.

  python -m launch.train --config=configs/tiny.py --workdir=runs/tiny

The same command again resumes after a crash or an interruption. Single values
are overridden on the command line: --config.phases.joint.steps=20.
"""

from absl import flags
from ml_collections import config_flags

from launch import cli
from metastone_jax.parallel import distributed
from metastone_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Recipe, for example configs/tiny.py.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of checkpoints, metrics and the report; default runs/NAME.',
)
_STEP = flags.DEFINE_integer(
  'step', None, 'Checkpoint step to resume from; default: the newest.'
)
_LAST_GOOD = flags.DEFINE_bool(
  'resume_from_last_good',
  False,
  'Pass over damaged checkpoints instead of stopping.',
)
_PLAN = flags.DEFINE_bool('plan', False, 'Print the plan and stop.')


def main() -> None:
  """Parses, builds, trains."""
  if _CONFIG.value is None:
    cli.fail('--config is missing; for example --config=configs/tiny.py')
  recipe = loop.parse_recipe(_CONFIG.value)
  if _PLAN.value:
    print(loop.describe(loop.Setup.build(recipe)))
    return
  path = loop.train(
    recipe,
    _WORKDIR.value or f'runs/{recipe.name}',
    step=_STEP.value,
    resume_from_last_good=_LAST_GOOD.value,
  )
  if distributed.is_primary():
    print(f'report: {path}')


if __name__ == '__main__':
  cli.run(main)
