r"""The recipe of the tests: every part of a real one, seconds on a CPU.

python -m launch.train --config=tests/launch/small.py --workdir=/tmp/small
"""

import ml_collections


def get_config():
  c = ml_collections.ConfigDict()
  c.name = 'small'
  c.seed = 3
  c.model = dict(
    preset='tiny',
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_width=8,
    feed_forward=32,
    score_init='torch',
  )
  c.mesh = dict(fsdp=-1)
  c.sinks = ()
  c.start_from = ''
  c.start_from_step = -1
  c.data = dict(
    tokenizer='tiny',
    step_marks=('.\n\n',),
    tasks=dict(signs=1.0),
    task_options=dict(signs=dict(min_terms=1, max_terms=2)),
    seed=0,
    num_demonstrations=64,
    max_prompt_length=24,
    max_response_length=28,
  )
  c.sampling = dict(temperature=1.0)
  c.phase_order = ('warmup', 'head', 'joint')
  c.phases = dict(
    warmup=dict(
      steps=40,  # enough for parsed answers and a few right ones
      demonstrations_per_step=32,
      policy_coefficient=0.0,
      score_coefficient=0.0,
      lm_coefficient=1.0,
      backbone_learning_rate=2e-2,
      head_learning_rate=0.0,
      warmup_steps=2,
      schedule='cosine',
    ),
    head=dict(
      steps=3,
      prompts_per_step=4,
      samples_per_prompt=4,
      demonstrations_per_step=4,
      sequences_per_microbatch=10,
      policy_coefficient=0.0,
      score_coefficient=1.0,
      score_loss='bce',
      score_gradient_scale=1.0,
      lm_coefficient=1.0,
      backbone_learning_rate=1e-2,
      head_learning_rate=1e-2,
      evaluate_every=2,
    ),
    joint=dict(
      steps=5,
      prompts_per_step=4,
      samples_per_prompt=4,
      updates_per_rollout=1,
      policy_coefficient=1.0,
      objective='grpo',
      objective_options=dict(kl_coefficient=1e-2, entropy_coefficient=1e-3),
      drop_zero_variance=False,
      overlong_buffer=16,
      score_coefficient=1.0,
      score_loss='spr',
      score_gradient_scale=1.0,
      backbone_learning_rate=1e-3,
      head_learning_rate=1e-3,
      evaluate_every=2,
    ),
  )
  c.evaluation = dict(
    problems=4,
    stage_samples=4,
    final_samples=4,
    small_problems=4,
    small_samples=4,
    ks=(1, 2, 4),
  )
  c.checkpoint = dict(every=3, max_to_keep=2)
  return c
