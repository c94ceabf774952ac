"""One policy a seed, and the responses that all arms share.

Contract:
- `base`: point {recipe: path of a config file, changes: {dotted key: value},
  seed, start: name of a base or arm point whose parameters it goes on from, or
  ''}. Trains in `folder/run`, and goes on there after any interruption.
- `material`: point {base, task, train_problems, train_samples, problems,
  samples; policy, an arm whose kept fit draws instead of the base point; slots,
  responses drawn at a time}. Draws from that policy responses
  to training problems (without those of its demonstrations) and to held-out
  problems, verifies them, reads each once (`drawn.Drawn`) and keeps
  `train.npz`, `heldout.npz` and, last, `material.json`. Responses are kept
  while they are drawn, readings in pieces: an interrupted point goes on.

Draws depend on (seed, split index, candidate) alone.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from metastone_jax import sprm
from metastone_jax.checkpoints import write_json_atomic
from metastone_jax.data import assemble_rows
from metastone_jax.data.rows import pad_rows
from metastone_jax.errors import UserError
from metastone_jax.scaling.job import REMOVE_POINT, needs_keys
from metastone_jax.scaling.runs import judging, law
from metastone_jax.scaling.runs.drawn import Drawn
from metastone_jax.telemetry.files import reading_arrays, write_arrays
from metastone_jax.training import loop
from metastone_jax.training.loop.collect import base_rows

SPLITS = {
  'train': ('train_problems', 'train_samples'),
  'heldout': ('problems', 'samples'),
}
_SLOTS = 256  # responses drawn at a time, where a point does not say
_WIDTH_MULTIPLE = 8  # of the rows: few different shapes
_ROWS_PER_SEGMENT = 256  # that are read between two files
_LOGIT_BYTES = 2**28  # of one pass over whole rows


class Material(NamedTuple):
  """Drawn responses, and whose they are.

  Attributes:
    base: base point, whose run says tokenizer, shape and sampling.
    policy: base point, or arm with a kept fit, whose parameters drew them.
    task: of the problems.
    train: to fit heads on.
    heldout: to judge.
  """

  base: str
  policy: str
  task: str
  train: Drawn
  heldout: Drawn


def base(point: Mapping[str, Any], job) -> list[dict[str, Any]]:
  """Trains the policy of a seed; one row: its size.

  Raises:
    UserError: a recipe or a start that is wrong.
    Interrupted: asked to stop; the run is saved.
  """
  needs_keys(point, 'recipe', 'changes', 'set', 'seed')
  job.check_stop()
  changes = dict(point['changes'])
  if point.get('start'):
    changes['start_from'] = str(checkpoints_of(job, point['start']))
  recipe = law.recipe_of({**point, 'changes': changes})
  run = job.folder / 'run'
  loop.train(recipe, run, check=job.check_stop)
  config = loop.Setup.build(recipe, run, phases=False).model_config
  return [
    {
      'set': point['set'],
      'seed': point['seed'],
      'metric': 'parameters',
      'value': config.num_backbone_parameters,
    }
  ]


check_done = law.check_done


def checkpoints_of(job, name: str) -> epath.Path:
  """Where the parameters of a base point, or of a kept fit, are."""
  folder = job.folder_of(name)
  run = folder / 'run' / 'checkpoints'
  return run if run.exists() else folder / 'fitted'


@contextlib.contextmanager
def base_setup(job, name: str) -> Iterator[loop.Setup]:
  """The setup of a base point; its verifiers end with the block.

  Raises:
    UserError: no such run.
  """
  run = job.folder_of(name) / 'run'
  recipe = law.kept_recipe(run)
  if recipe is None:
    raise UserError(
      f'{run} is no folder of a run (no config.json); do point {name} first'
    )
  setup = loop.Setup.build(recipe, run, phases=False)
  try:
    yield setup
  finally:
    setup.verifiers.close()


def base_params(setup: loop.Setup, job, name: str):
  """Those of a base point or a kept fit, on this machine's devices."""
  return loop.load_params(setup, str(checkpoints_of(job, name)), None)


def material(point: Mapping[str, Any], job) -> list[dict[str, Any]]:
  """Draws, verifies and reads; rows: how right the policy is on each split.

  Raises:
    UserError: no such run or task, or too few problems.
    Interrupted: asked to stop; what is drawn is kept.
  """
  sizes = [key for keys in SPLITS.values() for key in keys]
  needs_keys(point, 'base', 'task', 'set', 'seed', *sizes)
  with base_setup(job, point['base']) as setup:
    if point['task'] not in setup.recipe.data.tasks:
      raise UserError(
        f'point {point["name"]}: task {point["task"]!r} is none of '
        f'{point["base"]}: {", ".join(setup.recipe.data.tasks)}'
      )
    job.status('reading the checkpoint')
    policy = point.get('policy') or point['base']
    params = base_params(setup, job, policy)
    found = {split: _draw(point, split, setup, params, job) for split in SPLITS}
    # One width for both, so that they share compiled programs.
    longest = max(int(fields['length_B'].max()) for fields in found.values())
    width = -(-longest // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    rows = []
    for split, fields in found.items():
      fields = {
        name: x[:, :width] if name.endswith('_BT') else x
        for name, x in fields.items()
      }
      drawn = _read(split, fields, setup, params, job)
      drawn.save(job.folder / f'{split}.npz')
      rows += _rows(point, split, drawn)
  write_json_atomic(
    job.folder / 'material.json',
    {'base': point['base'], 'policy': policy, 'task': point['task']},
  )
  for split in SPLITS:  # all of it is in the files above
    for folder in (_kept(job, split), _readings(job, split)):
      if folder.exists():
        folder.rmtree()
  return rows


def load(job, name: str) -> Material:
  """What a material point has drawn.

  Raises:
    UserError: it is not done.
  """
  folder = job.folder_of(name)
  path = folder / 'material.json'
  if not path.exists():
    raise UserError(f'{folder} has no material.json; do point {name} first')
  about = json.loads(path.read_text())
  key = ('material', str(folder))
  if key not in job.cache:
    for other in [k for k in job.cache if k[0] == 'material']:
      del job.cache[other]  # one seed is enough to hold
    job.cache[key] = [Drawn.load(folder / f'{split}.npz') for split in SPLITS]
  return Material(
    about['base'],
    about['policy'],
    about['task'],
    *job.cache[key],
  )


def rows_per_pass(setup: loop.Setup, width: int, at_most: int = 256) -> int:
  """A power of two of rows whose logits fit in a few hundred MB."""
  each = 4 * width * setup.model_config.padded_vocab_size
  rows = max(1, min(at_most, _LOGIT_BYTES // each))
  return 1 << (rows.bit_length() - 1)


def _kept(job, split: str) -> epath.Path:
  return job.folder / f'responses-{split}'


def _readings(job, split: str) -> epath.Path:
  return job.folder / f'readings-{split}'


def _draw(point, split, setup, params, job) -> dict[str, np.ndarray]:
  """Fields of `Drawn` that need no further pass."""
  problems, samples = (point[name] for name in SPLITS[split])
  sampler = loop.Sampler.build(
    setup,
    setup.evaluation_sampling,
    problems=problems,
    samples=samples,
    slots=point.get('slots', _SLOTS),
  )
  evaluator = loop.Evaluator(setup, sampler, split)
  task = point['task']
  if evaluator.count(task, problems) < problems:
    raise UserError(
      f'point {point["name"]}: task {task} has fewer than {problems} problems '
      f'in the {split} split'
    )
  with loop.KeptResponses(_kept(job, split)) as kept:
    found, responses = evaluator.draw(
      params,
      task,
      num_problems=problems,
      num_samples=samples,
      progress=lambda done, total: job.status(
        f'{split}: {done} of {total} responses'
      ),
      pause=job.check_stop,
      keep_token_ids=True,
      kept=dict(kept.found),
      keep=kept.add,
    )
  _, prompt_PS, length_P = evaluator.batch(task, problems)
  ids = [row_R for group in responses.token_ids for row_R in group]
  config = setup.evaluation_sampling
  response_BR, written_B = pad_rows(
    ids, config.max_response_length, config.pad_id
  )
  prompt_B = np.repeat(length_P, samples)
  tokens_BT, response_BT = assemble_rows(
    np.repeat(prompt_PS, samples, axis=0),
    prompt_B,
    response_BR,
    written_B,
    setup.total_length,
    pad_id=config.pad_id,
  )
  tags = dict(
    think_start_id=config.think_start_id,
    think_end_id=config.think_end_id,
    side=config.score_side,
  )
  mark_BT = sprm.step_feature_mask(tokens_BT, step_ids=config.step_ids, **tags)
  end_BT = sprm.thinking_end_feature_mask(
    tokens_BT, prompt_B + written_B, **tags
  )
  failed_PN = found.without_verdict_PN
  return {
    'problem_ids': np.array(found.problem_ids, np.str_),
    'tokens_BT': tokens_BT,
    'prompt_length_B': prompt_B,
    'length_B': prompt_B + written_B,
    'mark_BT': mark_BT & response_BT,
    'end_B': end_BT.argmax(axis=1),
    'correct_PN': found.correct_PN,
    'answers_PN': found.answers_PN,
    'finished_PN': found.finished_PN,
    'score_weight_B': (found.eligible_PN & ~failed_PN)
    .reshape(-1)
    .astype(np.float32),
    'flops_P': found.read_flops_P + found.write_flops_PN.sum(axis=1),
  }


def _read(split, fields, setup, params, job) -> Drawn:
  """The responses with what the policy makes of them."""
  place_T = np.arange(fields['tokens_BT'].shape[1])
  read_BT = fields['mark_BT'] | (place_T == fields['end_B'][:, None])
  response_BT = (place_T >= fields['prompt_length_B'][:, None] - 1) & (
    place_T < fields['length_B'][:, None] - 1
  )
  rows = base_rows(fields['tokens_BT'], fields['length_B'], 0)
  size = rows_per_pass(setup, len(place_T))
  program = judging.read_program(setup.model_config, setup.sharder)
  total = len(read_BT)
  parts = []
  for first in range(0, total, _ROWS_PER_SEGMENT):
    job.check_stop()
    cut = slice(first, first + _ROWS_PER_SEGMENT)
    path = _readings(job, split) / f'{first:06d}.npz'
    if not path.exists():
      job.status(f'{split}: {first} of {total} responses read')
      part = _read_rows(
        program,
        params,
        {name: x[cut] for name, x in rows.items()},
        read_BT[cut],
        response_BT[cut],
        size,
        setup,
        job,
      )
      write_arrays(path, part, compress=False)
    with reading_arrays(path, 'file of readings', REMOVE_POINT) as data:
      parts.append({name: data[name] for name in data.files})
  return Drawn(
    **fields,
    **{
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    },
  )


def _read_rows(program, params, rows, read_BT, response_BT, size, setup, job):
  """feature_MD, log_prob_BT and certainty_B of some rows."""
  features, log_probs, certainties = [], [], []
  first = 0
  for piece, real in judging.pieces(rows, size):
    job.check_stop()
    out = jax.device_get(program(params, setup.sharder.put_batch(piece)))
    feature_BTD, log_prob_BT, certainty_BT = (x[:real] for x in out)
    cut = slice(first, first + real)
    first += real
    features.append(feature_BTD[read_BT[cut]])
    log_probs.append(np.where(response_BT[cut], log_prob_BT, 0))
    certainties.append(judging.mean_over(certainty_BT, response_BT[cut]))
  return {
    'feature_MD': np.concatenate(features),
    'log_prob_BT': np.concatenate(log_probs),
    'certainty_B': np.concatenate(certainties).astype(np.float32),
  }


def _rows(point, split, drawn: Drawn) -> list[dict[str, Any]]:
  response_B = drawn.length_B - drawn.prompt_length_B
  values = {
    'pass@1': drawn.correct_PN.mean(),
    'truncated': 1 - drawn.finished_PN.mean(),
    'unparsed': (drawn.answers_PN < 0).mean(),
    'response_tokens': response_B.mean(),
    'marks': drawn.mark_BT.sum(axis=1).mean(),
  }
  same = {
    'set': point['set'],
    'seed': point['seed'],
    'split': split,
    'problems': drawn.shape[0],
    'samples': drawn.shape[1],
  }
  return [
    {**same, 'metric': name, 'value': float(value)}
    for name, value in values.items()
  ]
