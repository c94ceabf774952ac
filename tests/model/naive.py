"""The decoder written as loops over layers and heads: an oracle.

Shares nothing with the package but the parameter names: no scan, no caches, no
kernels. jax.numpy, so that losses on top of it can be differentiated.
"""

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax.model import abstract_params


def random_params(config, seed=0):
  """Every leaf random, so that no bias or norm is at its neutral start.

  Drawn by numpy: compiling `init_params` takes longer than a whole test.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name = path[-1].key
    x = rng.normal(size=leaf.shape)
    if name.endswith('norm'):
      x = 1 + 0.2 * x
    elif name.endswith('bias'):
      x = 0.3 * x
    else:
      x = x * config.width**-0.5
    return x.astype(jnp.dtype(config.param_dtype))

  return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def layer_params(params):
  """One dict a layer, from the two stacks."""
  layers = []
  for stack in (params['low'], params['high']):
    for i in range(stack['q_kernel'].shape[0]):
      layers.append({name: leaf[i] for name, leaf in stack.items()})
  return layers


def _norm(x, scale, eps):
  return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + eps) * scale


def _rotate(x, position, theta):
  """Pairs (i, i + h/2) of x (T, h) as complex numbers turned by an angle."""
  half = x.shape[-1] // 2
  angle = position[:, None] * theta ** (-jnp.arange(half) / half)
  real, imaginary = x[:, :half], x[:, half:]
  return jnp.concatenate(
    [
      real * jnp.cos(angle) - imaginary * jnp.sin(angle),
      real * jnp.sin(angle) + imaginary * jnp.cos(angle),
    ],
    axis=-1,
  )


def _attention(p, x, position, mask, config):
  out = 0
  group = config.num_heads // config.num_kv_heads
  for head in range(config.num_heads):
    kv = head // group
    q = x @ p['q_kernel'][:, head]
    k = x @ p['k_kernel'][:, kv]
    v = x @ p['v_kernel'][:, kv]
    if config.qkv_bias:
      q, k, v = q + p['q_bias'][head], k + p['k_bias'][kv], v + p['v_bias'][kv]
    if config.qk_norm:
      q = _norm(q, p['q_norm'], config.norm_eps)
      k = _norm(k, p['k_norm'], config.norm_eps)
    q = _rotate(q, position, config.rope_theta)
    k = _rotate(k, position, config.rope_theta)
    score = jnp.where(mask, q @ k.T / config.head_width**0.5, -1e30)
    out += jax.nn.softmax(score, axis=-1) @ v @ p['o_kernel'][head]
  return out


def row_forward(params, config, token_T, position_T=None, segment_T=None):
  """One row.

  Returns:
    logits_TV, and the residual stream entering each block and leaving the
    last: L + 1 arrays (T, D).
  """
  T = token_T.shape[0]
  if position_T is None:
    position_T = jnp.arange(T)
  if segment_T is None:
    segment_T = jnp.ones(T, int)
  mask = np.tril(np.ones((T, T), bool)) & (
    segment_T[:, None] == segment_T[None, :]
  )
  x = jnp.asarray(params['embedding'])[token_T]
  residuals = [x]
  for p in layer_params(params):
    y = _norm(x, p['attention_norm'], config.norm_eps)
    x = x + _attention(p, y, position_T, mask, config)
    y = _norm(x, p['feed_forward_norm'], config.norm_eps)
    gate = y @ p['gate_kernel']
    inner = gate / (1 + jnp.exp(-gate)) * (y @ p['up_kernel'])
    x = x + inner @ p['down_kernel']
    residuals.append(x)
  x = _norm(x, params['final_norm'], config.norm_eps)
  if config.tied_embeddings:
    return x @ params['embedding'].T, residuals
  return x @ params['policy_kernel'], residuals


def forward(params, config, token_BT, position_BT=None, segment_BT=None):
  """All rows: logits_BTV and the L + 1 residual streams (B, T, D)."""
  B, T = token_BT.shape
  if position_BT is None:
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
  if segment_BT is None:
    segment_BT = jnp.ones((B, T), int)
  return jax.vmap(
    lambda token, position, segment: row_forward(
      params, config, token, position, segment
    )
  )(token_BT, position_BT, segment_BT)


def score_head(params, feature, keep=None, rate=0.0):
  """Step logits of features (..., D); `keep` masks the hidden units."""
  head = params['score_head']
  hidden = jnp.maximum(feature @ head['hidden_kernel'] + head['hidden_bias'], 0)
  if keep is not None:
    hidden = hidden * keep / (1 - rate)
  return (hidden @ head['output_kernel'] + head['output_bias'])[..., 0]
