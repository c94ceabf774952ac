r"""The main job on a CPU: a 0.4 M parameter reflective model from scratch.

  python -m launch.train --config=configs/tiny.py --workdir=runs/tiny

Three phases: `warmup` imitates one fixed set of demonstrations; `head` warms
the score head up on the policy's own rollouts; `joint` trains both heads
together (GRPO + process reward). Tasks: `signs` (make a goal by choosing the
signs of given numbers: easy to check, hard to find) and reasoning-gym's
`chain_sum`. Why these values: docs/evidence.md.
"""

import ml_collections


def get_config(arg: str = ''):
  """The recipe. No arguments are known."""
  if arg:
    raise ValueError(f'configs/tiny.py takes no argument, got {arg!r}')
  c = ml_collections.ConfigDict()
  c.name = 'tiny'
  c.seed = 0  # parameters, draws, dropout and order; not the problems
  c.model = dict(
    preset='tiny',  # width 96, 4 layers
  )
  c.mesh = dict(fsdp=-1)  # all devices split rows, parameters and moments
  c.sinks = ()  # more places for metrics: 'tensorboard', 'wandb'
  c.start_from = ''  # a checkpoints folder to take the parameters from
  c.start_from_step = -1  # -1 = its newest

  c.data = dict(
    tokenizer='tiny',  # the small tokenizer shipped with the project
    step_marks=('.\n\n',),  # a step ends with this token
    tasks=dict(signs=3.0, chain_sum=1.0),  # shares of the problems
    task_options=dict(
      signs=dict(min_terms=4, max_terms=5, random_demonstrations=0.5),
      chain_sum=dict(min_terms=2, max_terms=4),
    ),
    folder='',  # where tasks that read files find them
    seed=0,  # which problems exist, the same for every run
    num_demonstrations=16384,  # the ONE fixed supervised set
    max_prompt_length=30,  # tokens
    max_response_length=42,  # tokens, thinking and answer
  )
  c.sampling = dict(
    temperature=1.0,  # of training rollouts
    top_k=0,  # off
    top_p=1.0,  # off
    evaluation_temperature=1.0,
    evaluation_top_p=1.0,
    aggregator='geometric',  # trace score: geometric mean of step scores
    released_selection=False,  # finished candidates first
    slots=0,  # responses that a host draws at a time; 0 = all of its share
  )
  c.optimiser = dict(
    clip_norm=1.0,  # of each group's gradient
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.01,
  )

  c.phase_order = ('warmup', 'head', 'joint')
  c.phases = dict(
    warmup=dict(
      steps=1100,
      prompts_per_step=0,  # no rollouts
      demonstrations_per_step=64,
      policy_coefficient=0.0,
      score_coefficient=0.0,
      lm_coefficient=1.0,
      backbone_learning_rate=3e-3,
      head_learning_rate=0.0,
      warmup_steps=20,
      schedule='cosine',
      evaluate_every=100,
    ),
    head=dict(
      steps=16,
      prompts_per_step=64,
      samples_per_prompt=8,
      updates_per_rollout=8,
      demonstrations_per_step=64,
      sequences_per_microbatch=64,
      policy_coefficient=0.0,
      score_coefficient=1.0,
      score_loss='bce',
      score_gradient_scale=1.0,  # a small, new backbone must make the feature
      lm_coefficient=1.0,
      backbone_learning_rate=1e-3,
      head_learning_rate=1e-3,
      warmup_steps=2,
      schedule='constant',
      evaluate_every=4,
    ),
    joint=dict(
      steps=80,
      prompts_per_step=64,
      samples_per_prompt=8,
      updates_per_rollout=1,
      demonstrations_per_step=64,
      sequences_per_microbatch=64,
      policy_coefficient=1.0,
      objective='grpo',
      objective_options=dict(kl_coefficient=1e-3, entropy_coefficient=1e-3),
      drop_zero_variance=False,
      format_reward=0.0,  # for a whole answer that can be read
      truncation_penalty=0.0,  # of a response that is cut
      overlong_buffer=0,  # last tokens in which the penalty grows; 0 = off
      mask_truncated=False,
      partial_rollouts=0,
      score_coefficient=1.0,
      score_loss='bce',
      score_gradient_scale=1.0,
      lm_coefficient=0.3,
      backbone_learning_rate=3e-4,
      head_learning_rate=1e-3,
      warmup_steps=2,
      schedule='constant',
      evaluate_every=10,
    ),
  )
  # For `make evidence`, not part of the main job: start_from a checkpoint of it
  # with --config.phase_order="('control',)".
  c.phases.control = dict(
    # After warmup: go on with the same demonstrations instead.
    steps=1600,
    prompts_per_step=0,
    demonstrations_per_step=64,
    policy_coefficient=0.0,
    score_coefficient=0.0,
    lm_coefficient=1.0,
    backbone_learning_rate=1e-3,
    head_learning_rate=0.0,
    warmup_steps=20,
    schedule='cosine',
    evaluate_every=200,
  )
  # After head: the joint phase without the language-model loss.
  c.phases.joint_no_lm = c.phases.joint.copy_and_resolve_references()
  c.phases.joint_no_lm.lm_coefficient = 0.0
  c.phases.joint_no_lm.demonstrations_per_step = 0
  # After head: the joint phase with the paper's filtered loss.
  c.phases.joint_spr = c.phases.joint.copy_and_resolve_references()
  c.phases.joint_spr.score_loss = 'spr'

  c.evaluation = dict(
    problems=512,  # held-out problems of each task
    stage_samples=16,  # responses a problem after each phase
    final_samples=64,  # at the end, on the main task
    small_problems=128,  # for the curves
    small_samples=8,
    ks=(1, 2, 8, 32),
  )
  c.verify = dict(  # processes of the verifiers that need some, a host
    workers=0,  # 0 = one a CPU, up to 8
    deadline_s=10.0,  # of one check; then its process is killed
    memory_gb=4.0,  # of a process, 1e9 bytes; 0 = no limit
    recycle_after=2000,  # checks; then a process is replaced
  )
  c.checkpoint = dict(
    every=50,  # steps; ends of phases are always saved and kept
    max_to_keep=2,
  )
  return c
