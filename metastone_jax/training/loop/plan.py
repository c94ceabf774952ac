"""The start-up plan: what will run, in numbers, before anything runs."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax import sprm
from metastone_jax.data import DemonstrationDataset
from metastone_jax.telemetry.progress import format_count
from metastone_jax.training.loop.recipe import PhaseConfig
from metastone_jax.training.loop.row_plan import RowPlan
from metastone_jax.training.loop.setup import Setup


def state_bytes(setup: Setup) -> int:
  """Bytes of masters and both Adam moments, over all devices."""
  config = setup.model_config
  count = config.num_backbone_parameters + config.num_score_parameters
  width = jnp.dtype(config.param_dtype).itemsize
  return 3 * count * width


def step_flops(setup: Setup, phase: PhaseConfig) -> float:
  """FLOPs of one step: 3 x forward on the trained rows, 1 x on the drawn.

  Rows are counted at their full padded length, which is what is computed; of
  packed rows, the most that any lengths need.
  """
  T = setup.total_length
  forward = setup.model_config.forward_flops
  rows = setup.row_plan(phase)
  trained = rows.num_rows(phase.rows_per_update) * rows.length
  trained *= phase.updates_per_rollout
  drawn = phase.rollouts_per_step * setup.recipe.data.max_response_length
  return 3 * forward(trained, T / 2) + forward(drawn, T / 2)


def cache_bytes(setup: Setup, rows: int) -> int:
  """Bytes of keys and values of so many responses at full length.

  So many are drawn at a time: `sampling.slots`.
  """
  model = setup.model_config
  width = jnp.dtype(model.dtype).itemsize
  slot = 2 * model.num_layers * model.num_kv_heads * model.head_width * width
  return rows * setup.recipe.data.max_response_length * slot


def _layout(rows: RowPlan, pieces: int) -> list[str]:
  """Lines on rows that hold several trajectories, or more than one needs."""
  phase = rows.phase
  size = rows.rows_per_microbatch
  if phase.packed_length:
    return [
      f'    packing    rows of {rows.length} places (packed_length), each '
      f'with several trajectories of up to {rows.longest}; {size} rows a '
      f'micro-batch, and of {pieces} micro-batches only those are run that '
      'hold a token'
    ]
  if phase.shared_prompt:
    S, R = rows.layout.prompt_length, rows.layout.response_length
    N = phase.samples_per_prompt
    return [
      f'    prompts    shared: rows of {S} prompt + {N} x {R} response places '
      f'= {rows.length} instead of {N * rows.longest}; {size} rows a '
      f'micro-batch, {pieces} micro-batches'
    ]
  if rows.length > rows.longest:
    return [
      f'    places     {rows.longest} padded to {rows.length}, which the mesh '
      'can split'
    ]
  return []


def describe(setup: Setup) -> str:
  """The plan as text for the terminal."""
  recipe, model = setup.recipe, setup.model_config
  devices = jax.devices()
  mesh = (
    'one device'
    if setup.sharder.mesh is None
    else ' x '.join(f'{k} {v}' for k, v in setup.sharder.mesh.shape.items())
  )
  share = model.num_score_parameters / model.num_backbone_parameters
  if setup.hosts.count > 1:
    mesh += (
      f'; {setup.hosts.count} processes, each draws its own prompts on '
      f'{len(jax.local_devices())} devices'
    )
  lines = [
    f'recipe {recipe.name}, seed {recipe.seed}',
    f'  devices      {len(devices)} x {devices[0].device_kind} ({mesh})',
    f'  backbone     {format_count(model.num_backbone_parameters)} parameters:'
    f' {model.num_layers} layers, width {model.width}, {model.num_heads} heads'
    f' ({model.num_kv_heads} key/value), vocabulary {model.vocab_size}',
    f'  score head   {format_count(model.num_score_parameters)} parameters'
    f' ({100 * share:.2f} % of the backbone), reads the stream entering block'
    f' {model.split} of {model.num_layers}',
    f'  train state  {state_bytes(setup) / 1e9:.3f} GB (masters and both'
    ' moments)',
    '  tasks        '
    + ', '.join(f'{k} x {v:g}' for k, v in recipe.data.tasks.items())
    + f'; {recipe.data.num_demonstrations} demonstrations in all; RL problems'
    ' have none',
    f'  rows         {recipe.data.max_prompt_length} prompt + '
    f'{recipe.data.max_response_length} response tokens',
  ]
  for phase in recipe.phases:
    lines.append(f'  phase {phase.name}: {phase.steps} steps')
    if phase.prompts_per_step:
      together = phase.prompts_per_step + phase.partial_rollouts
      share = together // setup.hosts.count
      slots = recipe.sampling.num_slots(share * phase.samples_per_prompt)
      at_a_time = ''
      if slots < phase.rollouts_per_step:
        at_a_time = f' a host ({slots} responses at a time)'
      lines.append(
        f'    rollout    {phase.prompts_per_step} prompts_per_step x '
        f'{phase.samples_per_prompt} samples_per_prompt = '
        f'{phase.rollouts_per_step} responses, key/value cache '
        f'{cache_bytes(setup, slots) / 1e9:.3f} GB'
        f'{at_a_time}'
      )
    rows = setup.row_plan(phase)
    pieces = rows.num_micro_batches
    per_update = phase.rollouts_per_step // phase.updates_per_rollout
    lines.append(
      f'    update     {phase.updates_per_rollout} a step, each {per_update} '
      f'responses + {phase.demonstrations_per_step} demonstrations = '
      f'{phase.rows_per_update} sequences in '
      + (
        f'{pieces} micro-batches of '
        f'{phase.rows_per_update // pieces} (sequences_per_microbatch)'
        if rows.sequences_per_row == 1
        else f'{rows.num_rows(phase.rows_per_update)} rows'
      )
    )
    lines += _layout(rows, pieces)
    terms = []
    if phase.policy_coefficient:
      objective = phase.objective_config
      terms.append(
        f'{phase.policy_coefficient:g} x {phase.objective} (KL '
        f'{objective.kl_coefficient:g}, entropy '
        f'{objective.entropy_coefficient:g})'
      )
    if phase.score_coefficient:
      terms.append(
        f'{phase.score_coefficient:g} x {phase.score_loss} (gradient scale '
        f'{phase.score_gradient_scale:g})'
      )
    if phase.lm_coefficient:
      terms.append(f'{phase.lm_coefficient:g} x demonstrations')
    lines.append(
      f'    loss       {" + ".join(terms)}; learning rates '
      f'{phase.backbone_learning_rate:g} backbone, '
      f'{phase.head_learning_rate:g} head'
    )
    lines.append(
      f'    arithmetic {step_flops(setup, phase) / 1e9:.1f} GFLOP a step'
    )
  return '\n'.join(lines)


def describe_steps(
  setup: Setup, demonstrations: DemonstrationDataset, count: int = 256
) -> str:
  """What the step marks find in demonstrations, and which line ends they miss.

  A tokenizer may write the end of a line in several ways, of which
  `data.step_marks` names some: a step that ends otherwise is never scored.

  Args:
    setup: of the run.
    demonstrations: of the run.
    count: of them that are read.

  Returns:
    A line on the marks; another one where tokens of the thinking hold a line
    break and are no marks.
  """
  rows = demonstrations.batch_at(demonstrations.start(), count)
  tokens_BT, decode = rows['tokens_BT'], setup.tokenizer.decode
  place_T = np.arange(tokens_BT.shape[1])
  response_BT = place_T >= rows['prompt_length_B'][:, None] - 1
  config = setup.evaluation_sampling
  marks = set(config.step_ids)
  breaks = {i for i in np.unique(tokens_BT).tolist() if '\n' in decode([i])}

  def ended_by(ids: set[int]) -> collections.Counter:
    """Token -> steps of these demonstrations that it ends."""
    mask_BT = response_BT & sprm.step_feature_mask(
      tokens_BT,
      step_ids=sorted(ids),
      think_start_id=config.think_start_id,
      think_end_id=config.think_end_id,
      side=config.score_side,
    )
    return collections.Counter(tokens_BT[:, 1:][mask_BT[:, :-1]].tolist())

  def listed(found: collections.Counter) -> str:
    return ', '.join(
      f'{decode([i])!r} {n / len(tokens_BT):.2g}'
      for i, n in found.most_common(4)
    )

  found, every = ended_by(marks), ended_by(marks | breaks)
  missed = collections.Counter(
    {i: n for i, n in every.items() if i not in marks}
  )
  mean = found.total() / len(tokens_BT)
  lines = [
    f'  steps        {mean:.2g} a demonstration, ended by '
    + (listed(found) or 'none of data.step_marks')
  ]
  if missed:
    lines.append(
      f'    no marks   {listed(missed)} a demonstration: tokens with a line '
      'break that are not in data.step_marks'
    )
  return '\n'.join(lines)
