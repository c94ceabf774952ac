"""What fitted parameters, or the policy alone, say of drawn responses.

Judges without a head:
- self-certainty (Kang, Zhao and Song 2025, arXiv 2502.18581): how far the
  policy's distribution p over V tokens is from the uniform one, on average over
  the n tokens of a response,
    1/n sum_i KL(uniform || p_i) = - 1/(n V) sum_i sum_j log(V p_i(j));
- mean log-probability of the response's tokens.
Both from the policy as it is, without a temperature.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kernels import scoring_head
from metastone_jax.model import ModelConfig, Params, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.scaling.judged import Judged
from metastone_jax.scaling.runs.drawn import Drawn
from metastone_jax.training import step as step_lib
from metastone_jax.training.loop.collect import Rows


def certainty(log_p_TV: jax.Array) -> jax.Array:
  """KL(uniform || p) in nats at each place: log-probs (..., V) -> (...)."""
  return -jnp.mean(log_p_TV, axis=-1) - jnp.log(log_p_TV.shape[-1])


@functools.lru_cache(maxsize=4)
def read_program(config: ModelConfig, sharder: Sharder):
  """The jitted (params, rows) -> feature_BTD, log_prob_BT, certainty_BT."""

  def read(params: Params, rows: Rows):
    model = ReflectiveModel.bind(config, params)
    hidden, feature, _ = model(
      rows['tokens_BT'],
      rows['position_BT'],
      rows['segment_BT'],
      sharder=sharder,
    )
    log_p_BTV = jax.nn.log_softmax(
      model.logits(hidden)[..., : config.vocab_size]
    )
    log_prob_BT = jnp.take_along_axis(
      log_p_BTV, rows['target_BT'][..., None], axis=-1
    )[..., 0]
    return feature.astype(jnp.float32), log_prob_BT, certainty(log_p_BTV)

  return jax.jit(read)


def mean_over(value_BT: np.ndarray, mask_BT: np.ndarray) -> np.ndarray:
  """Mean of each row over a mask, float64; 0 where that is empty."""
  count_B = np.maximum(mask_BT.sum(axis=1), 1)
  return np.where(mask_BT, value_BT, 0).sum(axis=1, dtype=np.float64) / count_B


def score_rows(
  params: Params,
  drawn: Drawn,
  position: str,
  *,
  config: ModelConfig,
  sharder: Sharder,
  rows_per_pass: int,
  with_log_prob: bool,
  pause: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, np.ndarray]:
  """Step logits by a whole model, and its log-probs.

  Args:
    params: of the model.
    drawn: B responses.
    position: where the head reads, see `Drawn.step_mask_BT`.
    config: of the model.
    sharder: mesh.
    rows_per_pass: rows of one forward pass.
    with_log_prob: whether log-probs are wanted.
    pause: called with (rows done, rows in all) between passes; may raise.

  Returns:
    step_logit_BT at the steps and at the last thinking position, and
    log_prob_BT.
  """
  rows = drawn.rows(position)
  rows['step_mask_BT'] = rows['step_mask_BT'] | drawn.end_BT
  program = _score_program(config, sharder, with_log_prob)
  parts = []
  for piece, size in pieces(rows, rows_per_pass):
    out = jax.device_get(program(params, sharder.put_batch(piece)))
    parts.append({name: x[:size] for name, x in out.items()})
    done = sum(len(part['step_logit_BT']) for part in parts)
    pause(done, len(drawn.length_B))
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }


@functools.lru_cache(maxsize=4)
def _score_program(config, sharder, with_log_prob):
  return jax.jit(
    functools.partial(
      step_lib.log_prob_pass,
      model_config=config,
      num_micro_batches=1,
      sharder=sharder,
      with_log_prob=with_log_prob,
    )
  )


def pieces(rows: Rows, size: int):
  """Yields (`size` rows, how many of them are real); the last is filled up."""
  total = len(rows['tokens_BT'])
  for first in range(0, total, size):
    index = np.minimum(np.arange(first, first + size), total - 1)
    yield {k: v[index] for k, v in rows.items()}, min(size, total - first)


def score_features(head: Params, drawn: Drawn, position: str) -> np.ndarray:
  """Step logits by a head on the kept features: `score_rows` without a pass.

  Args:
    head: `params['score_head']`.
    drawn: B responses.
    position: 'before' or 'end'.

  Returns:
    step_logit_BT at the steps and at the last thinking position, else 0.
  """
  mask_BT = drawn.step_mask_BT(position) | drawn.end_BT
  rows = drawn.features(mask_BT)
  logit_BS, _ = jax.jit(scoring_head.step_scores)(
    rows['feature_BSD'], *head_weights(head), rows['mark_BS']
  )
  logit_BT = np.zeros(mask_BT.shape, np.float32)
  logit_BT[mask_BT] = np.asarray(logit_BS)[rows['mark_BS']]
  return logit_BT


def head_weights(head: Params) -> tuple[jax.Array, ...]:
  """The arguments of `kernels.scoring_head` from `params['score_head']`."""
  names = ('hidden_kernel', 'hidden_bias', 'output_kernel', 'output_bias')
  return tuple(head[name] for name in names)


def judged_by_head(
  drawn: Drawn, step_logit_BT: np.ndarray, position: str
) -> Judged:
  """The samples with step logits.

  Args:
    drawn: P x N samples.
    step_logit_BT: at the steps and at the last thinking position.
    position: where the steps were read; at the 'end' a trace has one step.
  """
  mask_BT = drawn.step_mask_BT(position)
  count_B = mask_BT.sum(axis=1)
  S = max(1, int(count_B.max()))
  logit_BS = np.full((len(mask_BT), S), np.nan, np.float32)
  logit_BS[np.arange(S) < count_B[:, None]] = step_logit_BT[mask_BT]
  last_B = np.take_along_axis(step_logit_BT, drawn.end_B[:, None], axis=1)
  return _judged(
    drawn,
    count_B,
    step_logit_PNS=logit_BS.reshape(*drawn.shape, S),
    last_logit_PN=last_B.reshape(drawn.shape),
  )


def ends_with(drawn: Drawn, token: int) -> np.ndarray:
  """1 where the last step of a trace ends with this token, else 0.

  Args:
    drawn: B responses.
    token: that stands before the last mark; a trace without a mark has 0.

  Returns:
    float32 B.
  """
  mark_BT = drawn.mark_BT
  last_B = mark_BT.shape[1] - 1 - mark_BT[:, ::-1].argmax(axis=1)
  token_B = drawn.tokens_BT[np.arange(len(last_B)), last_B]
  return ((token_B == token) & mark_BT.any(axis=1)).astype(np.float32)


def judged_by_value(drawn: Drawn, value_B: np.ndarray) -> Judged:
  """The samples with one value each, higher = better."""
  count_B = drawn.mark_BT.sum(axis=1)
  return _judged(drawn, count_B, value_PN=value_B.reshape(drawn.shape))


def _judged(drawn: Drawn, count_B, **said) -> Judged:
  length_B = drawn.length_B - drawn.prompt_length_B
  return Judged(
    problem_ids=drawn.problem_ids.tolist(),
    correct_PN=drawn.correct_PN,
    answers_PN=drawn.answers_PN,
    finished_PN=drawn.finished_PN,
    tokens_PN=length_B.reshape(drawn.shape),
    num_steps_PN=count_B.reshape(drawn.shape),
    **said,
  )


def policy_losses(
  drawn: Drawn, log_prob_BT: np.ndarray | None
) -> tuple[float, float, float]:
  """How the policy stands to its own responses, nats a token.

  Args:
    drawn: responses of the policy before the fit.
    log_prob_BT: of their tokens after it; None = it has not moved.

  Returns:
    Cross-entropy before and after, and their difference: an estimate of
    KL(before || after).
  """
  mask_BT = drawn.response_BT
  before = -float(drawn.log_prob_BT[mask_BT].mean(dtype=np.float64))
  if log_prob_BT is None:
    return before, before, 0.0
  after = -float(log_prob_BT[mask_BT].mean(dtype=np.float64))
  return before, after, after - before
