r"""32B, the released recipe (MetaStone-S1-32B, XBai-o4).

  python -m launch.train \
    --config=configs/32b.py:mesh=v5p-128,source=gs://BUCKET/QwQ-32B,data=TASK \
    --workdir=gs://BUCKET/runs/32b

source is a Hugging Face folder (QwQ-32B, Qwen3-32B) or one of launch.ingest;
with the released `score_module.pt` beside the weights, training goes on from
it. mesh is one of the machines in `c.layouts`, all compiled for in
docs/pod_fit.md; `runlocal` shortens everything. Values: released script.
"""

import ml_collections

from configs import common


def get_config(arg: str = ''):
  """The recipe; `arg` see configs/common.py."""
  c = ml_collections.ConfigDict()
  c.name = '32b'
  c.seed = 0  # draws, dropout, a fresh head and order; not the problems
  c.model = dict(
    source='',  # Hugging Face folder, .gguf file or folder of launch.ingest
    preset='32b',  # its shape, for launch.compile: QwQ-32B
    dtype='bfloat16',  # compute and key/value cache; masters are float32
    remat='full',  # recompute each block in the backward pass
    attention='auto',  # splash on TPUs, cudnn or triton on GPUs
    vocab_multiple=128,  # embedding rows are padded to a multiple of it
  )
  c.layout = ''  # one of c.layouts below; '' = the next two lines
  c.mesh = dict(fsdp=-1)  # over all devices
  c.rollout_mesh = dict(data=-1)  # over the devices of one host
  c.sinks = ()  # more places for metrics: 'tensorboard', 'wandb'
  c.start_from = ''  # a run's checkpoints folder whose parameters replace those
  c.start_from_step = -1  # -1 = its newest

  c.data = dict(
    tokenizer='source',  # the one that comes with the model
    step_marks=('.\n\n',),  # a step ends with this token
    instruction='\nPlease reason step by step, and put your final answer '
    'within \\boxed{}.',
    source='',  # what the problems come from: a task's name
    folder='',  # where tasks that read files find them
    task_options=dict(),  # task name -> its options
    seed=0,  # which problems exist, the same for every run
    num_demonstrations=0,  # no supervised phase
    max_prompt_length=2048,  # tokens
    max_response_length=32768,  # tokens, thinking and answer
  )
  c.sampling = dict(
    temperature=1.0,  # of training rollouts
    top_k=0,  # off in training
    top_p=1.0,  # off in training
    evaluation_temperature=0.6,
    evaluation_top_p=0.95,
    aggregator='geometric',  # trace score: geometric mean of step scores
    released_selection=False,  # finished candidates first
    slots=0,  # responses that a host draws at a time; 0 = all of its share
  )
  c.optimiser = dict(
    clip_norm=1.0,  # of each group's gradient
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.01,
    first_moment_dtype='float32',
  )

  c.phase_order = ('joint',)
  c.phases = dict(
    joint=dict(
      steps=120,
      prompts_per_step=128,
      samples_per_prompt=8,
      partial_rollouts=0,  # prompts drawn beyond, so that no step waits for all
      mask_truncated=False,  # cut responses give no policy gradient
      updates_per_rollout=1,
      demonstrations_per_step=0,
      sequences_per_microbatch=64,
      packed_length=0,  # places of a row of several trajectories; 0 = one a row
      shared_prompt=False,  # run a problem's prompt once for all its responses
      policy_coefficient=1.0,
      objective='grpo',
      objective_options=dict(kl_coefficient=1e-3, entropy_coefficient=1e-3),
      format_reward=0.0,  # for a whole answer that can be read
      truncation_penalty=0.0,  # of a response that is cut
      overlong_buffer=0,  # last tokens in which the penalty grows; 0 = off
      score_coefficient=1.0,
      score_loss='spr',
      score_gradient_scale=1e-4,  # as released
      lm_coefficient=0.0,
      backbone_learning_rate=1e-7,
      head_learning_rate=3e-6,
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
  c.verify = dict(  # processes of the verifiers that need some, a host
    workers=0,  # 0 = one a CPU, up to 8
    deadline_s=10.0,  # of one check; then its process is killed
    memory_gb=4.0,  # of a process, 1e9 bytes; 0 = no limit
    recycle_after=2000,  # checks; then a process is replaced
  )
  c.checkpoint = dict(
    every=10,  # steps; ends of phases are always saved and kept
    max_to_keep=2,
  )

  # What depends on the machine.
  c.layouts = {
    'v5p-128': dict(
      mesh=dict(fsdp=16, tensor=4),
      rollout_mesh=dict(tensor=4),
      sampling=dict(slots=24),
      phases=dict(joint=dict(sequences_per_microbatch=32)),
    ),
    'v5p-256': dict(
      mesh=dict(fsdp=32, tensor=4),
      rollout_mesh=dict(tensor=4),
      sampling=dict(slots=16),
      phases=dict(joint=dict(sequences_per_microbatch=64)),
    ),
    'v6e-256': dict(
      mesh=dict(fsdp=32, sequence=2, tensor=4),
      rollout_mesh=dict(tensor=4),
      # 16.4 GB of decode weights and 2.3 GB of cache a response and chip.
      sampling=dict(slots=4),
      phases=dict(joint=dict(sequences_per_microbatch=32)),
    ),
    'h100-64': dict(
      mesh=dict(fsdp=8, tensor=8),
      rollout_mesh=dict(tensor=8),
      sampling=dict(slots=32),
      phases=dict(joint=dict(sequences_per_microbatch=32)),
    ),
  }
  common.apply_argument(c, arg)
  return c
