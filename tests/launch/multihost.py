r"""The small recipe of several processes: five joint steps, in float64 or not.

python -m launch.train --config=tests/launch/multihost.py:float64
"""

from tests.launch import small


def get_config(dtype='float64'):
  c = small.get_config()
  c.name = 'multihost'
  c.model |= dict(dtype=dtype, param_dtype=dtype)
  c.phase_order = ('warmup', 'joint')
  c.phases.warmup.steps = 25
  joint = c.phases.joint
  joint.prompts_per_step = 8
  joint.samples_per_prompt = 4
  joint.updates_per_rollout = 2
  joint.demonstrations_per_step = 8
  joint.sequences_per_microbatch = 8
  joint.lm_coefficient = 0.1
  joint.evaluate_every = 4
  c.evaluation.problems = 6  # no multiple of the processes times the wave
  c.checkpoint.every = 2
  return c
