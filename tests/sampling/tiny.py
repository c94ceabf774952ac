"""A small vocabulary, prompts of unequal length, and a re-read in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax.model import ModelConfig, ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import SamplingConfig, rollout, slots, strategies
from tests import quick
from tests.model import naive

V, S, R = 12, 5, 10
PAD, EOS, THINK, UNTHINK, MARK = 0, 1, 2, 3, 4
NEVER = V + 1  # a token id that no draw can give
SEED = 7


def model_config(dtype='float64') -> ModelConfig:
  return ModelConfig(
    vocab_size=V,
    width=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=4,
    feed_forward=24,
    dtype=dtype,
    param_dtype=dtype,
  )


def sampling_config(**options) -> SamplingConfig:
  return SamplingConfig(
    **{
      'max_response_length': R,
      'eos_id': EOS,
      'pad_id': PAD,
      'step_ids': (MARK,),
      'think_start_id': THINK,
      'think_end_id': UNTHINK,
    }
    | options
  )


def prompts(count: int, opened: bool = True):
  """Right-padded prompts of 2 .. S tokens, the last one <think> if opened."""
  rng = np.random.default_rng(0)
  prompt = rng.integers(5, V, (count, S)).astype(np.int32)
  length = rng.integers(2, S + 1, count).astype(np.int32)
  prompt[np.arange(S) >= length[:, None]] = PAD
  if opened:
    prompt[np.arange(count), length - 1] = THINK
  return prompt, length


@functools.cache
def _loop(config, trace, k):
  mconfig = model_config()

  def run(params, prompt, length, draw_P):
    model = ReflectiveModel.bind(mconfig, params)
    candidate_N = np.arange(k, dtype=np.int32)
    drawn = slots.decode_loop(
      model,
      rollout.start(
        model,
        prompt,
        length,
        strategies.row_keys(np.int32(SEED), draw_P, candidate_N),
        config=config,
        sharder=Sharder(),
        trace=trace,
      ),
      turns=config.max_response_length,
      config=config,
      sharder=Sharder(),
    )
    finished = rollout.finish(model, *drawn, prompt, length, config=config)
    return drawn[0].column, finished

  return quick.jit(run)


def loop(config, k, params, prompt, length, trace=False):
  """(turns made, the Rollout); programs are shared in a process."""
  draw_P = np.arange(len(prompt), dtype=np.int32)
  return jax.device_get(_loop(config, trace, k)(params, prompt, length, draw_P))


def join(prompt, length, token_PNA):
  """Rows (P, N, S + A): prompt and response without a gap."""
  P, N, A = token_PNA.shape
  rows = np.full((P, N, prompt.shape[1] + A), PAD, np.int32)
  for p in range(P):
    rows[p, :, : length[p]] = prompt[p, : length[p]]
    rows[p, :, length[p] : length[p] + A] = token_PNA[p]
  return rows


@functools.cache
def _reread(mconfig):
  def run(params, rows_BT):
    logits, residuals = naive.forward(params, mconfig, rows_BT)
    return logits, naive.score_head(params, residuals[mconfig.split])

  return quick.jit(run)


def reread(params, prompt, length, token_PNA, mconfig=None):
  """logits (P, N, A + 1, V) and step logits (P, N, A + 1) of the naive model.

  Index a is the position that predicts response token a; index A is the last
  position, which predicts nothing.
  """
  mconfig = mconfig or model_config()
  P, N, A = token_PNA.shape
  rows = join(prompt, length, token_PNA)
  logits, z = _reread(mconfig)(
    jax.tree.map(jnp.asarray, params), rows.reshape(P * N, -1)
  )
  logits = np.asarray(logits).reshape(P, N, rows.shape[-1], -1)
  z = np.asarray(z).reshape(P, N, rows.shape[-1])
  at = length[:, None] - 1 + np.arange(A + 1)
  p = np.arange(P)[:, None]
  return (
    np.moveaxis(logits[p, :, at], 2, 1),
    np.moveaxis(z[p, :, at], 2, 1),
  )


def log_softmax(logits):
  top = logits.max(-1, keepdims=True)
  return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
