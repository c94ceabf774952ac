r"""The small recipe for jobs of several processes, in float64 or float32.

python -m launch.train --config=tests/launch/multihost.py:float64,warmup
python -m launch.train --config=tests/launch/multihost.py:float64,joint \
  --config.start_from=RUN_ABOVE/checkpoints

Apart, so that the tests warm up once, in one process; and so that every
process of a job reads a checkpoint as its first act.
"""

from tests.launch import small


def get_config(variant='float64,joint'):
  dtype, phase = variant.split(',')
  c = small.get_config()
  c.name = 'multihost'
  c.model.update(dtype=dtype, param_dtype=dtype)
  c.phase_order = (phase,)
  c.phases.warmup.steps = 100  # until some answers are right
  joint = c.phases.joint
  joint.prompts_per_step = 8
  joint.samples_per_prompt = 4
  joint.updates_per_rollout = 2
  joint.demonstrations_per_step = 8
  joint.sequences_per_microbatch = 8
  joint.lm_coefficient = 0.1
  joint.evaluate_every = 4
  c.evaluation.problems = 6  # no multiple of the processes
  # Of 32 responses in one process, 16 in each of two, 8 in each of four; every
  # device has one slot or more, so 12 become 16 where there are eight devices.
  c.sampling.slots = 12
  c.checkpoint.every = 2
  return c
