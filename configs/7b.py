r"""7B (MetaStone-S1-7B from R1-Distill-Qwen-7B).

  python -m launch.train --config=configs/7b.py \
    --config.model.source=FOLDER --workdir=runs/7b

FOLDER is a Hugging Face folder (R1-Distill-Qwen-7B) or one of launch.ingest;
with the released `score_module.pt` beside the weights, training goes on from
it. No 7B script was released: values lie between those of 1.5B and 32B. A
rollout keeps the cache of all its rows at once, which `--plan` prints: prompts
and lengths must be chosen to fit the devices.
"""

import ml_collections


def get_config(arg: str = ''):
  """The recipe. No arguments are known."""
  if arg:
    raise ValueError(f'configs/7b.py takes no argument, got {arg!r}')
  c = ml_collections.ConfigDict()
  c.name = '7b'
  c.seed = 0  # draws, dropout, a fresh head and order; not the problems
  c.model = dict(
    source='',  # Hugging Face folder, .gguf file or folder of launch.ingest
    dtype='bfloat16',  # compute and key/value cache; masters are float32
    remat='full',  # recompute each block in the backward pass
    vocab_multiple=128,  # embedding rows are padded to a multiple of it
  )
  c.mesh = dict(fsdp=-1, tensor=1)
  c.sinks = ()  # more places for metrics: 'tensorboard', 'wandb'
  c.start_from = ''  # a run's checkpoints folder whose parameters replace those
  c.start_from_step = -1  # -1 = its newest

  c.data = dict(
    tokenizer='source',  # the one that comes with the model
    step_marks=('.\n\n',),  # a step ends with this token
    instruction='\nPlease reason step by step, and put your final answer '
    'within \\boxed{}.',
    tasks=dict(chain_sum=1.0),  # shares of the problems (reasoning-gym)
    task_options=dict(chain_sum=dict(min_terms=4, max_terms=8)),
    seed=0,  # which problems exist, the same for every run
    num_demonstrations=0,  # no supervised phase
    max_prompt_length=1024,  # tokens
    max_response_length=16384,  # tokens, thinking and answer
  )
  c.sampling = dict(
    temperature=0.8,  # of training rollouts
    top_k=0,  # off in training
    top_p=1.0,  # off in training
    evaluation_temperature=0.6,
    evaluation_top_p=0.95,
    aggregator='geometric',  # trace score: geometric mean of step scores
    released_selection=False,  # finished candidates first
  )
  c.optimiser = dict(
    clip_norm=1.0,  # of each group's gradient
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,
  )

  c.phase_order = ('joint',)
  c.phases = dict(
    joint=dict(
      steps=120,
      prompts_per_step=64,
      samples_per_prompt=8,
      updates_per_rollout=2,  # mini-batches of 32 prompts
      demonstrations_per_step=0,
      sequences_per_microbatch=64,
      policy_coefficient=1.0,
      objective='grpo',
      objective_options=dict(kl_coefficient=1e-3, entropy_coefficient=1e-3),
      score_coefficient=1.0,
      score_loss='spr',
      score_gradient_scale=1e-4,  # as released
      lm_coefficient=0.0,
      backbone_learning_rate=5e-7,
      head_learning_rate=5e-6,
      schedule='constant',
      evaluate_every=20,
    ),
  )

  c.evaluation = dict(
    problems=512,  # held-out problems of each task
    stage_samples=8,  # responses a problem after each phase
    final_samples=32,  # at the end, on the main task
    small_problems=64,  # for the curves
    small_samples=8,
    ks=(1, 2, 8, 32),
  )
  c.checkpoint = dict(
    every=10,  # steps; ends of phases are always saved and kept
    max_to_keep=2,
  )
  return c
