"""Fits one arm's head (and backbone) on responses that are drawn.

Contract: the update is the trainer's own (`training.step.update`, jitted, the
state donated), over shuffled mini-batches of `Drawn` for some epochs. Every
arm of a seed begins with the same backbone and a fresh head of the same seed,
and sees the same mini-batches. A backbone that neither loss reaches is not run:
`fit_features` trains the head on the kept features with the same loss,
dropout, optimiser and order, and gives the same head (a test compares them).

'spr' has no gradient in a head that has seen nothing (SPEC 6), so its first
quarter of the updates is 'bce'.

A long fit saves its state in a folder and goes on from there.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from kernels import scoring_head
from metastone_jax import sprm
from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.errors import UserError
from metastone_jax.model import ModelConfig, Params, init_params
from metastone_jax.scaling.runs.drawn import POSITIONS, Drawn
from metastone_jax.scaling.runs.judging import head_weights
from metastone_jax.training import optimiser
from metastone_jax.training import state as state_lib
from metastone_jax.training import step as step_lib
from metastone_jax.training.loop import Interrupted, Setup

_RISE = 0.05  # share of the updates in which learning rates rise
_LAST = 0.1  # of the highest learning rate, after the last update
_BCE_FIRST = 0.25  # share of the updates of 'spr'
_SAVE_SECONDS = 240.0  # between two saves: they can take a minute


@dataclasses.dataclass(frozen=True)
class FitOptions:
  """How an arm is fitted.

  Attributes:
    loss: 'bce', 'soft' or 'spr'.
    gradient_scale: of the score loss into the backbone.
    lm_coefficient: of the cross-entropy on the responses themselves, which
      keeps the policy where it is; 0 = off.
    epochs: passes over the responses.
    rows_per_update: responses of one update.
    backbone_learning_rate: highest.
    head_learning_rate: highest.
    position: where the head reads, see `Drawn.step_mask_BT`.
    feature_layer: block before which it reads; None = the model's.
    width: its hidden units; None = the model's.
  """

  loss: str = 'bce'
  gradient_scale: float = 0.0
  lm_coefficient: float = 0.0
  epochs: int = 1
  rows_per_update: int = 64
  backbone_learning_rate: float = 1e-3
  head_learning_rate: float = 1e-3
  position: str = 'before'
  feature_layer: int | None = None
  width: int | None = None

  def __post_init__(self):
    if self.loss not in sprm.KINDS:
      raise UserError(
        f'loss={self.loss!r} of an arm is unknown; use one of '
        f'{", ".join(sprm.KINDS)}'
      )
    if self.position not in POSITIONS:
      raise UserError(
        f'position={self.position!r} of an arm is unknown; use one of '
        f'{", ".join(POSITIONS)}'
      )
    if self.epochs < 1 or self.rows_per_update < 1:
      raise UserError(
        f'an arm needs epochs={self.epochs} and rows_per_update='
        f'{self.rows_per_update} of at least 1'
      )

  @classmethod
  def of(cls, point: Mapping[str, Any]) -> 'FitOptions':
    """Those of an arm's point; what it does not name has its default."""
    names = [field.name for field in dataclasses.fields(cls)]
    found = {name: point[name] for name in names if name in point}
    options = cls(**found)
    if point['judge'] == 'prm':  # another model: no policy to keep
      return dataclasses.replace(options, lm_coefficient=0.0)
    # Frozen: nor does the policy move, but where that alone is asked for.
    if not options.gradient_scale and not point.get('lm_alone'):
      return dataclasses.replace(options, lm_coefficient=0.0)
    return options

  @property
  def moves_backbone(self) -> bool:
    """Whether any loss reaches the backbone."""
    return bool(self.gradient_scale or self.lm_coefficient)

  def updates(self, rows: int) -> int:
    """Updates of the fit; rows that fill none are left out of an epoch.

    Raises:
      UserError: fewer rows than one update takes.
    """
    if rows < self.rows_per_update:
      raise UserError(
        f'{rows} responses are fewer than rows_per_update='
        f'{self.rows_per_update}; draw more or lower it'
      )
    return self.epochs * (rows // self.rows_per_update)

  def batch(self, update: int, rows: int, seed: int) -> np.ndarray:
    """Which rows an update takes: each epoch its own order."""
    epoch, place = divmod(update, rows // self.rows_per_update)
    order_B = np.random.default_rng([seed, epoch]).permutation(rows)
    first = place * self.rows_per_update
    return np.sort(order_B[first : first + self.rows_per_update])

  def rates(self, update: int, updates: int) -> dict[str, np.float32]:
    """Learning rates: a short rise, then half a cosine."""
    rise = min(1.0, (update + 1) / max(1.0, _RISE * updates))
    fall = 0.5 * (1 + math.cos(math.pi * update / updates))
    factor = rise * (_LAST + (1 - _LAST) * fall)
    # At 0 weight decay leaves a frozen backbone alone, too.
    backbone = self.backbone_learning_rate if self.moves_backbone else 0.0
    return {
      'backbone': np.float32(backbone * factor),
      'head': np.float32(self.head_learning_rate * factor),
    }

  def loss_at(self, update: int, updates: int) -> str:
    """The loss of an update."""
    early = self.loss == 'spr' and update < _BCE_FIRST * updates
    return 'bce' if early else self.loss


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A fitted model.

  Attributes:
    config: shapes.
    params: all of them after `fit`; 'score_head' alone after `fit_features`.
    seconds: of fitting, earlier tries included.
    loss: mean score loss of the last tenth of the updates.
  """

  config: ModelConfig
  params: Params
  seconds: float
  loss: float


def variant(
  config: ModelConfig,
  params: Params,
  seed: int,
  *,
  feature_layer: int | None = None,
  width: int | None = None,
) -> tuple[ModelConfig, Params]:
  """The same backbone with a fresh head, perhaps of another kind.

  Args:
    config: of the parameters.
    params: of a model.
    seed: of the head.
    feature_layer: block before which it reads: blocks change their stack, not
      what they compute. None = as it is.
    width: hidden units; None = as it is.
  """
  changes = {}
  if feature_layer is not None:
    changes['feature_layer'] = feature_layer
  if width is not None:
    changes['score_width'] = width
  new = dataclasses.replace(config, **changes)
  params = dict(params)
  if new.split != config.split:
    both = jax.tree.map(
      lambda low, high: jnp.concatenate([low, high]),
      params['low'],
      params['high'],
    )
    params['low'] = jax.tree.map(lambda x: x[: new.split], both)
    params['high'] = jax.tree.map(lambda x: x[new.split :], both)
  params['score_head'] = fresh_head(new, seed)
  return new, params


def fresh_head(config: ModelConfig, seed: int) -> Params:
  """An unfitted score head; as every arm of its width and seed begins."""
  # One stream of numbers fills the whole model; jit drops the rest of it.
  create = jax.jit(lambda key: init_params(config, key)['score_head'])
  return create(jax.random.key(seed))


def fit(
  options: FitOptions,
  drawn: Drawn,
  setup: Setup,
  params: Params,
  seed: int,
  *,
  rows_per_pass: int,
  folder: epath.PathLike,
  pause: Callable[[int, int], None] = lambda done, total: None,
  save_seconds: float = _SAVE_SECONDS,
) -> Fitted:
  """Fits backbone and head.

  Args:
    options: of the arm.
    drawn: responses.
    setup: of the policy that drew them.
    params: its parameters; they are given up.
    seed: of the head, the order and the dropout.
    rows_per_pass: the most rows of one forward and backward pass.
    folder: of the state of a long fit, if an earlier try has left one or this
      one takes so long; its owner removes it.
    pause: called with (updates done, in all) after each; may raise.
    save_seconds: between two saves; 0 = after each update.

  Raises:
    UserError: fewer responses than an update takes; a feature layer that the
      model does not have; a loss that is not finite.
  """
  rows = drawn.rows(options.position)
  B = len(drawn.length_B)
  updates = options.updates(B)
  config, params = variant(
    setup.model_config,
    params,
    seed,
    feature_layer=options.feature_layer,
    width=options.width,
  )
  opt_config, sharder = setup.recipe.optimiser, setup.sharder
  piece = math.gcd(options.rows_per_update, rows_per_pass)
  programs = {
    loss: _update_program(
      config,
      opt_config,
      step_lib.UpdateConfig(
        policy_coefficient=0.0,
        score_coefficient=1.0,
        score_loss=loss,
        score_gradient_scale=options.gradient_scale,
        lm_coefficient=options.lm_coefficient,
        num_micro_batches=options.rows_per_update // piece,
      ),
      sharder,
    )
    for loss in {options.loss_at(u, updates) for u in (0, updates - 1)}
  }
  folder = epath.Path(folder)
  manager, state, before, losses = None, None, 0.0, []
  if folder.exists():
    manager = CheckpointManager(folder, max_to_keep=1)
    if manager.latest_step() is not None:
      abstract = state_lib.abstract_state(config, opt_config, sharder)
      try:
        tree, extra, _ = manager.restore(None, {'train': abstract})
      except UserError as error:  # cut off or damaged: it only saves time
        logging.warning('the fit begins anew: %s', error)
        manager.close()
        manager = None
        folder.rmtree()
      else:
        state, before, losses = tree['train'], extra['seconds'], extra['losses']
  if state is None:
    state = state_lib.init_state(config, opt_config, seed, sharder, params)
  first = int(state['step'])
  started = saved = time.monotonic()

  def save() -> None:
    nonlocal manager, saved
    manager = manager or CheckpointManager(folder, max_to_keep=1)
    spent = before + time.monotonic() - started
    extra = {'seconds': spent, 'losses': losses}
    manager.save(len(losses), {'train': state}, extra)
    saved = time.monotonic()

  try:
    for u in range(first, updates):
      index = options.batch(u, B, seed)
      state, metrics = programs[options.loss_at(u, updates)](
        state,
        sharder.put_batch({name: x[index] for name, x in rows.items()}),
        *sharder.put_replicated((options.rates(u, updates), np.uint32(seed))),
      )
      losses.append(float(metrics['loss/score']))
      if not math.isfinite(losses[-1]):
        raise UserError(
          f'the score loss is not finite after {u + 1} updates; lower '
          'head_learning_rate or backbone_learning_rate of this arm'
        )
      now = time.monotonic()
      long = before + now - started > save_seconds
      if now - saved > save_seconds or (u == updates - 1 and long):
        save()
      try:
        pause(u + 1, updates)
      except Interrupted:
        # Of other reasons one is that another worker has this point now.
        if time.monotonic() - saved > save_seconds / 8:
          save()
        raise
  finally:
    if manager is not None:
      manager.close()
  seconds = before + time.monotonic() - started
  return Fitted(config, state['params'], seconds, _last_mean(losses))


def fit_features(
  options: FitOptions,
  drawn: Drawn,
  setup: Setup,
  seed: int,
  *,
  pause: Callable[[int, int], None] = lambda done, total: None,
) -> Fitted:
  """Fits the head alone on kept features; arguments as `fit`.

  Raises:
    UserError: as `fit`, or an arm that needs features that are not kept.
  """
  if not uses_kept_features(options, setup.model_config):
    raise UserError(
      'this arm needs its backbone: only features before a mark and at the end '
      'of the thinking, of the default layer, are kept'
    )
  B = len(drawn.length_B)
  updates = options.updates(B)
  config = dataclasses.replace(
    setup.model_config,
    score_width=options.width or setup.model_config.score_width,
  )
  rows = drawn.features(drawn.step_mask_BT(options.position))
  rows['correct_B'] = drawn.correct_PN.reshape(-1)
  rows['score_weight_B'] = drawn.score_weight_B
  opt_config = setup.recipe.optimiser
  params = {'score_head': fresh_head(config, seed)}
  state = {
    'params': params,
    'opt': optimiser.init(opt_config, params),
    'step': jnp.zeros((), jnp.int32),
  }
  started, losses = time.monotonic(), []
  for u in range(updates):
    index = options.batch(u, B, seed)
    state, loss = _update_head(
      state,
      {name: x[index] for name, x in rows.items()},
      options.rates(u, updates),
      np.uint32(seed),
      loss=options.loss_at(u, updates),
      config=config,
      opt_config=opt_config,
    )
    losses.append(loss)
    pause(u + 1, updates)
  losses = [float(loss) for loss in losses]
  seconds = time.monotonic() - started
  return Fitted(config, state['params'], seconds, _last_mean(losses))


def uses_kept_features(options: FitOptions, config: ModelConfig) -> bool:
  """Whether an arm needs no backbone."""
  default = options.feature_layer in (None, config.split)
  return not options.moves_backbone and default and options.position != 'at'


@functools.lru_cache(maxsize=4)
def _update_program(config, opt_config, update_config, sharder):
  """The jitted update of training; arms of one kind share it."""
  shardings = None
  if sharder.mesh is not None:
    state = state_lib.abstract_state(config, opt_config, sharder)
    shardings = (jax.tree.map(lambda x: x.sharding, state), None)
  return jax.jit(
    functools.partial(
      step_lib.update,
      model_config=config,
      opt_config=opt_config,
      config=update_config,
      sharder=sharder,
    ),
    donate_argnums=0,
    out_shardings=shardings,
  )


@functools.partial(
  jax.jit,
  static_argnames=('loss', 'config', 'opt_config'),
  donate_argnames='state',
)
def _update_head(state, rows, rates, seed, *, loss, config, opt_config):
  """`training.step.update` of a head whose features are given."""
  target_B, mask_BS = rows['correct_B'], rows['mark_BS']
  scores = functools.partial(
    scoring_head.step_scores,
    rows['feature_BSD'],
    mark_BT=mask_BS,
    kind=config.scoring_head,
  )
  weight_BS, _ = sprm.step_weights(
    scores(*head_weights(state['params']['score_head']))[0],
    mask_BS,
    target_B,
    kind=loss,
    score_weight_B=rows['score_weight_B'],
  )

  def loss_of(params):
    logit_BS, _ = scores(
      *head_weights(params['score_head']),
      mark_BT=weight_BS != 0,
      dropout_rate=config.score_dropout,
      seed=step_lib.dropout_seed(seed, state['step']),
      row_B=rows['row_B'],
      position_BT=rows['position_BS'],
    )
    total = sprm.step_loss_denominator(weight_BS)
    return sprm.step_loss_sum(logit_BS, target_B, weight_BS) / total

  value, grads = jax.value_and_grad(loss_of)(state['params'])
  params, opt, _ = optimiser.apply(
    opt_config, grads, state['opt'], state['params'], rates
  )
  return {'params': params, 'opt': opt, 'step': state['step'] + 1}, value


def _last_mean(losses: list[float]) -> float:
  return float(np.mean(losses[-max(1, len(losses) // 10) :]))
