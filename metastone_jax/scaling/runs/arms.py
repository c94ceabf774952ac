"""One arm of a seed: a judge, fitted if it has to be, on the held-out samples.

Contract: point {arm, set, seed, material, judge, keep}, and

| judge          | what                                                        |
| -------------- | ----------------------------------------------------------- |
| head           | a score head on the policy's backbone; with the keys of     |
|                | `fit.FitOptions`                                            |
| head, head_of  | that of another arm's point, not fitted again, on the       |
|                | features of this material's policy                          |
| prm            | a copy of the backbone with a head, fitted whole, which     |
|                | reads every response beside the policy                      |
| self-certainty | no head, see `judging`                                      |
| log-prob       | no head, see `judging`                                      |
| written        | no head: 1 where the token before the last mark is the      |
|                | point's `text`, else 0                                      |

Keeps `judged.npz`, `head.npz` (of arms with a head), with `keep` the whole
model in `fitted/` (others may start from it), and `about.json`, last. The state
of a long fit is in `fit/` until then.

Rows: accuracy of best-of-k by the arm's score over all k-subsets, and AUC
within problems.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from metastone_jax import sprm
from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.errors import UserError
from metastone_jax.evaluation import best_of_k, pass_at_k
from metastone_jax.model import ModelConfig
from metastone_jax.scaling.job import REMOVE_POINT, needs_keys
from metastone_jax.scaling.judged import About, Judged
from metastone_jax.scaling.runs import fit as fit_lib
from metastone_jax.scaling.runs import judging, material
from metastone_jax.scaling.runs.drawn import Drawn
from metastone_jax.telemetry.files import reading_arrays, write_arrays
from metastone_jax.training.loop import Setup

_HEADS = ('head', 'prm')
JUDGES = (*_HEADS, 'self-certainty', 'log-prob', 'written')
_KS = (1, 2, 4, 8)


def arm(point: Mapping[str, Any], job) -> list[dict[str, Any]]:
  """Fits and judges; see the module docstring.

  Raises:
    UserError: an unknown judge or option; something needed is not done.
    Interrupted: asked to stop; a long fit is saved.
  """
  needs_keys(point, 'arm', 'set', 'seed', 'material', 'judge')
  if point['judge'] not in JUDGES:
    raise UserError(
      f'point {point["name"]}: judge={point["judge"]!r} is unknown; use one of '
      f'{", ".join(JUDGES)}'
    )
  started = time.monotonic()
  drawn = material.load(job, point['material'])
  heldout = drawn.heldout
  with material.base_setup(job, drawn.base) as setup:
    if point['judge'] in _HEADS:
      judged, said = _with_head(point, drawn, setup, job)
    else:
      judged, said = _without_head(point, setup, heldout)
  judged.save(job.folder / 'judged.npz')
  judge_flops = said.pop('flops')
  waited = max(0.0, said['train_seconds'] - (time.monotonic() - started))
  about = About(
    arm=point['arm'],
    seed=point['seed'],
    task=drawn.task,
    set=point['set'],
    # What earlier tries spent on the fit counts too.
    seconds=waited + time.monotonic() - started,
    flops_policy_per_problem=float(heldout.flops_P.mean()),
    flops_judge_per_problem=float(judge_flops),
    **said,
  )
  about.save(job.folder / 'about.json')
  if (job.folder / 'fit').exists():
    (job.folder / 'fit').rmtree()
  return _rows(point, judged)


def _without_head(point, setup: Setup, heldout: Drawn):
  """Judged, and fields of About."""
  each = 1.0
  if point['judge'] == 'log-prob':
    value_B = judging.mean_over(heldout.log_prob_BT, heldout.response_BT)
  elif point['judge'] == 'written':
    needs_keys(point, 'text')
    value_B = judging.ends_with(heldout, setup.tokenizer.id_of(point['text']))
    each = 0.0
  else:
    value_B = heldout.certainty_B
    # The sampler has the log-probs; a sum.
    each = float(setup.model_config.vocab_size)
  loss, _, _ = judging.policy_losses(heldout, None)
  return judging.judged_by_value(heldout, value_B), {
    'train_seconds': 0.0,
    'parameters_extra': 0,
    'parameters_trained': 0,
    'flops': each * heldout.response_BT.sum() / heldout.shape[0],
    'kl_policy': 0.0,
    'lm_loss_before': loss,
    'lm_loss_after': loss,
    'options': {'judge': point['judge']},
  }


def _with_head(point, drawn: material.Material, setup: Setup, job):
  """Likewise, of a head that is fitted, or another arm's."""
  train, heldout = drawn.train, drawn.heldout
  prm = point['judge'] == 'prm'
  options = fit_lib.FitOptions.of(point)
  given = point.get('head_of')
  kept = bool(given) or fit_lib.uses_kept_features(options, setup.model_config)
  log_prob_BT = None
  if given:
    head = _load_head(job, given)
    fitted = fit_lib.Fitted(setup.model_config, {'score_head': head}, 0.0, 0.0)
  elif kept:
    fitted = fit_lib.fit_features(
      options, train, setup, point['seed'], pause=_progress(job, 'update')
    )
  else:
    fitted = _fit_whole(point, drawn, options, setup, job)
  config, position = fitted.config, options.position
  head = fitted.params['score_head']
  if kept:
    logit_BT = judging.score_features(head, heldout, position)
  else:
    width = heldout.tokens_BT.shape[1]
    out = judging.score_rows(
      fitted.params,
      heldout,
      position,
      config=config,
      sharder=setup.sharder,
      rows_per_pass=material.rows_per_pass(setup, width),
      with_log_prob=not prm,
      pause=_progress(job, 'response judged'),
    )
    logit_BT, log_prob_BT = out['step_logit_BT'], out.get('log_prob_BT')
  _save_head(job, head)
  if point.get('keep'):
    _keep(point, drawn, fitted, setup, job)
  before, after, kl = judging.policy_losses(heldout, log_prob_BT)
  backbone = _below_head(config) if prm else config.num_backbone_parameters
  trained = 0 if given else config.num_score_parameters
  if options.moves_backbone and not given:
    trained += backbone
  said = {
    'train_seconds': fitted.seconds,
    'parameters_extra': config.num_score_parameters + (backbone if prm else 0),
    'parameters_trained': trained,
    'flops': _flops(config, heldout, position, prm),
    'kl_policy': None if prm else kl,
    'lm_loss_before': before,
    'lm_loss_after': None if prm else after,
    'options': {
      'judge': point['judge'],
      'loss': options.loss,
      'gradient_scale': options.gradient_scale,
      'lm_coefficient': options.lm_coefficient,
      'feature_layer': config.split,
      'position': position,
      'width': config.score_units,
      'aggregator': point.get('aggregator', 'geometric'),
      'epochs': options.epochs,
      'rows_per_update': options.rows_per_update,
      'updates': 0 if given else options.updates(len(train.length_B)),
      'head_learning_rate': options.head_learning_rate,
      'backbone_learning_rate': options.backbone_learning_rate,
      'head_of': given or None,
      'score_loss': None if given else fitted.loss,
    },
  }
  return judging.judged_by_head(heldout, logit_BT, position), said


def _fit_whole(point, drawn, options, setup, job) -> fit_lib.Fitted:
  job.status('reading the checkpoint')
  train = drawn.train
  # The optimiser triples what a row costs beside its logits.
  rows = material.rows_per_pass(setup, train.tokens_BT.shape[1], at_most=64)
  return fit_lib.fit(
    options,
    train,
    setup,
    material.base_params(setup, job, drawn.policy),
    point['seed'],
    rows_per_pass=rows,
    folder=job.folder / 'fit',
    pause=_progress(job, 'update'),
  )


def _progress(job, what: str):
  def pause(done: int, total: int) -> None:
    job.status(f'{what} {done} of {total}')
    job.check_stop()

  return pause


def _flops(config: ModelConfig, heldout: Drawn, position: str, prm: bool):
  """FLOPs of judging, a problem; a separate model reads prompt and response."""
  steps_B = np.maximum(1, heldout.step_mask_BT(position).sum(axis=1))
  flops = config.score_flops(steps_B).sum()
  if prm:
    # All blocks below its head, for each response anew.
    share = config.split / config.num_layers
    flops += share * config.prefill_flops(heldout.length_B).sum()
  return flops / heldout.shape[0]


def _below_head(config: ModelConfig) -> int:
  """Parameters of the embedding and the blocks that the head reads."""
  whole = config.num_backbone_parameters
  more = dataclasses.replace(config, num_layers=config.num_layers + 1)
  block = more.num_backbone_parameters - whole
  unembedding = config.vocab_size * config.width
  behind = config.width + (0 if config.tied_embeddings else unembedding)
  return whole - (config.num_layers - config.split) * block - behind


def _save_head(job, head) -> None:
  arrays = {name: np.asarray(x) for name, x in head.items()}
  write_arrays(job.folder / 'head.npz', arrays, compress=False)


def _load_head(job, name: str):
  path = job.folder_of(name) / 'head.npz'
  if not path.exists():
    raise UserError(f'{path}: no such head; do point {name} first')
  with reading_arrays(path, 'score head', REMOVE_POINT) as data:
    return {name: data[name] for name in data.files}


def _keep(point, drawn, fitted: fit_lib.Fitted, setup: Setup, job) -> None:
  """The fitted model, as a checkpoint that others may start from."""
  config = setup.model_config
  if (
    fitted.config.split != config.split
    or fitted.config.score_units != config.score_units
  ):
    raise UserError(
      f'point {point["name"]}: keep is for models of the shape of {drawn.base}'
    )
  params = fitted.params
  if 'embedding' not in params:  # the head alone was fitted
    params = {**material.base_params(setup, job, drawn.policy), **params}
  with CheckpointManager(job.folder / 'fitted', max_to_keep=1) as manager:
    manager.save(0, {'train': {'params': params}}, {'arm': point['arm']})


def _rows(point, judged: Judged) -> list[dict[str, Any]]:
  score_PN = judged.score_PN(point.get('aggregator', 'geometric'))
  eligible_PN = judged.finished_PN & (judged.answers_PN >= 0)
  same = {
    'set': point['set'],
    'seed': point['seed'],
    'arm': point['arm'],
    'problems': judged.shape[0],
    'samples': judged.shape[1],
  }
  rows = [
    {
      **same,
      'metric': 'best-of-k',
      'k': k,
      'value': best_of_k(
        score_PN, judged.correct_PN, k, finished_PN=eligible_PN
      ),
    }
    for k in _KS
    if k <= judged.shape[1]
  ]
  rows.append(
    {
      **same,
      'metric': 'oracle',
      'k': min(_KS[-1], judged.shape[1]),
      'value': pass_at_k(judged.correct_PN, min(_KS[-1], judged.shape[1])),
    }
  )
  auc = sprm.auc_within(score_PN, judged.correct_PN)
  rows.append(
    {
      **same,
      'metric': 'auc-within',
      'k': None,
      'value': None if np.isnan(auc) else auc,
    }
  )
  return rows
