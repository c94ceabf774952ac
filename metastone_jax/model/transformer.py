"""The reflective model: one backbone, a policy head and a score head.

The module is used functionally: parameters are a plain nested dict (`params`),
`ReflectiveModel.bind(config, params)` merges it into a module at trace time,
and nothing here is stateful. Blocks live in two stacks, `low` (blocks [0, f))
and `high` (blocks [f, L)); the value between them is the score feature (SPEC 1:
the residual stream entering the last block, no final norm).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import scoring_head as head_lib
from kernels import token_log_prob as log_prob_lib
from kernels.attention import PLAIN, Layout
from metastone_jax.model.config import ModelConfig
from metastone_jax.model.layers import (
  RESIDUAL,
  Block,
  LayerCache,
  ScoreHead,
  normal_init,
  rms_norm,
)
from metastone_jax.model.rope import rotation
from metastone_jax.parallel import Sharder

Params = dict[str, Any]

_POLICIES = jax.checkpoint_policies
_REMAT = {
  'full': None,
  'dots': _POLICIES.dots_with_no_batch_dims_saveable,
  'attention': _POLICIES.save_only_these_names('attention'),
  'offload': _POLICIES.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=['block_input'],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


class ReflectiveModel(nnx.Module):
  """Backbone in two stacks, policy head, score head."""

  def __init__(
    self, config: ModelConfig, *, rngs: nnx.Rngs, unstacked: bool = False
  ):
    self.config = config
    D, V = config.width, config.padded_vocab_size
    dtype = jnp.dtype(config.param_dtype)
    # Tied: rows of norm ~1, so that the transposed table gives logits of
    # order 1 from a normed hidden state.
    self.embedding = nnx.Param(normal_init(rngs.params(), (V, D), D, dtype))

    def stack(layers: int) -> Block:
      @nnx.split_rngs(splits=layers)
      @nnx.vmap(in_axes=0, out_axes=0)
      def create(rngs):
        return Block(config, rngs=rngs)

      return create(rngs)

    if unstacked:
      self.blocks = nnx.List(
        [Block(config, rngs=rngs) for _ in range(config.num_layers)]
      )
    else:
      self.low = stack(config.split)
      self.high = stack(config.num_layers - config.split)
    self.final_norm = nnx.Param(jnp.ones((D,), dtype))
    if not config.tied_embeddings:
      self.policy_kernel = nnx.Param(
        normal_init(rngs.params(), (D, V), D, dtype)
      )
    self.score_head = ScoreHead(config, rngs=rngs)

  @staticmethod
  def bind(config: ModelConfig, params: Params) -> 'ReflectiveModel':
    """A module over these parameters; call it inside a jitted function.

    Args:
      config: shapes.
      params: as `init_params` or as `unstack_params` gives them.
    """
    return nnx.merge(_graph(config, 'blocks' in params), params)

  def embed(self, token: jax.Array) -> jax.Array:
    """Rows of the embedding: (...) int32 -> (..., D)."""
    return self.embedding[...].astype(self.config.dtype)[token]

  def _policy_master_DV(self) -> jax.Array:  # noqa: N802 (shape suffix)
    if self.config.tied_embeddings:
      return self.embedding[...].T
    return self.policy_kernel[...]

  def policy_kernel_DV(self) -> jax.Array:  # noqa: N802 (shape suffix)
    """The language-model head in the compute dtype."""
    return self._policy_master_DV().astype(self.config.dtype)

  def rotation(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of this model's rotary embedding at int positions."""
    config = self.config
    return rotation(
      position,
      config.head_width,
      config.rope_theta,
      config.dtype,
      config.rope_scaling,
    )

  def _run(
    self, stack: Block, x, cos, sin, segment, sharder, layout, keep_cache
  ):
    graph, state = nnx.split(stack)

    def body(x, layer):
      x, kv = nnx.merge(graph, layer)(x, cos, sin, segment, sharder, layout)
      return x, kv if keep_cache else None

    if self.config.remat != 'none':
      body = jax.checkpoint(body, policy=_REMAT[self.config.remat])
    return jax.lax.scan(body, x, state)

  def __call__(
    self,
    token_BT: jax.Array,
    position_BT: jax.Array,
    segment_BT: jax.Array,
    *,
    sharder: Sharder,
    layout: Layout = PLAIN,
    keep_cache: bool = False,
  ) -> tuple[jax.Array, jax.Array, Any]:
    """Whole sequences.

    Args:
      token_BT: int32 tokens.
      position_BT: int32 positions within each segment.
      segment_BT: int32, 0 = padding; attention stays within a segment.
      sharder: activation shardings.
      layout: what the places of a row are; the default is rows of one segment
        in their order.
      keep_cache: also return keys and values of every layer.

    Returns:
      hidden_BTD after the final norm, feature_BTD entering block f, and (with
      keep_cache) a list of (k, v), each (B, T, K, h), one a layer.
    """
    config = self.config
    cos, sin = self.rotation(position_BT)
    x = sharder.constrain(self.embed(token_BT), *RESIDUAL)
    cache = []
    if hasattr(self, 'blocks'):
      # One after the other: stacks for a loop would be a second copy of the
      # weights (15 GB of 32B's on a v6e chip).
      feature = None
      for index, block in enumerate(self.blocks):
        if index == config.split:
          feature = x
        x, kv = block(x, cos, sin, segment_BT, sharder, layout)
        cache.append(kv)
    else:
      run = functools.partial(
        self._run,
        cos=cos,
        sin=sin,
        segment=segment_BT,
        sharder=sharder,
        layout=layout,
        keep_cache=keep_cache,
      )
      feature, low = run(self.low, x)
      x, high = run(self.high, feature)
      if keep_cache:
        cache = [
          (k[layer], v[layer])
          for k, v in (low, high)
          for layer in range(k.shape[0])
        ]
    hidden = rms_norm(x, self.final_norm[...], config.norm_eps)
    return hidden, feature, cache if keep_cache else None

  def score(self, feature_BTD: jax.Array) -> jax.Array:
    """Step logits z at every position, (B, T), without dropout."""
    return head_lib.scoring_head(feature_BTD, *self.score_head.weights())

  def step_scores(
    self,
    feature_BTD: jax.Array,
    mark_BT: jax.Array,
    *,
    sharder: Sharder,
    seed: jax.Array | None = None,
    row_B: jax.Array | None = None,
    position_BT: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Step logits z and log-scores at marks, (B, T) each, 0 elsewhere.

    Dropout only with a seed; arguments as in `kernels.scoring_head`.
    """
    split = None
    if sharder.mesh is not None:
      split = head_lib.Split(
        sharder.mesh,
        *sharder.mesh_axes(RESIDUAL[:2], feature_BTD.shape[:2]),
      )
    return head_lib.step_scores(
      feature_BTD,
      *self.score_head.weights(),
      mark_BT,
      dropout_rate=self.config.score_dropout,
      seed=seed,
      row_B=row_B,
      position_BT=position_BT,
      split=split,
      kind=self.config.scoring_head,
      interpret=self.config.interpret_kernels,
    )

  def token_log_prob(
    self,
    hidden_BTD: jax.Array,
    target_BT: jax.Array,
    *,
    temperature: jax.Array,
    sharder: Sharder,
    chunk: int | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Log-probs of the targets and entropies, (B, T) each, in nats.

    Args:
      hidden_BTD: final hidden states.
      target_BT: int32, the token taken after each position.
      temperature: logits are divided by it, (B,) or (B, T).
      sharder: activation shardings.
      chunk: see `kernels.token_log_prob`.
    """
    kernel_DV = self._policy_master_DV()
    split = None
    if sharder.mesh is not None:
      batch, length = sharder.mesh_axes(('batch', 'length'), target_BT.shape)
      embed, vocabulary = sharder.mesh_axes(
        ('embed', 'vocabulary'), kernel_DV.shape
      )
      split = log_prob_lib.Split(sharder.mesh, batch, length, embed, vocabulary)
    return log_prob_lib.token_log_prob(
      hidden_BTD,
      kernel_DV,
      target_BT,
      temperature=temperature,
      chunk=chunk,
      vocab_size=self.config.vocab_size,
      split=split,
      kind=self.config.token_log_prob,
      interpret=self.config.interpret_kernels,
    )

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Policy logits of final hidden states: (..., D) -> (..., V).

    V counts the padding of `vocab_multiple`, whose logits are NEVER_A_TOKEN.
    """
    acc = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.einsum(
      '...D,DV->...V',
      hidden,
      self.policy_kernel_DV(),
      preferred_element_type=acc,
    )
    return log_prob_lib.mask_padding(logits, self.config.vocab_size)

  def prefill(
    self,
    prompt_PS: jax.Array,
    length_P: jax.Array,
    *,
    slots: int,
    columns: int,
    sharder: Sharder,
  ) -> tuple[jax.Array, jax.Array, tuple[LayerCache, ...]]:
    """Runs each prompt once and opens the caches of its slots.

    Args:
      prompt_PS: right-padded prompts.
      length_P: real tokens of each prompt, >= 1.
      slots: B, own caches.
      columns: R of each.
      sharder: activation shardings.

    Returns:
      hidden_PD and feature_PD at the last real token, and one LayerCache a
      layer.
    """
    P, S = prompt_PS.shape
    place = jnp.arange(S, dtype=jnp.int32)
    segment_PS = (place[None] < length_P[:, None]).astype(jnp.int32)
    hidden, feature, layers = self(
      prompt_PS,
      jnp.broadcast_to(place, (P, S)),
      segment_PS,
      sharder=sharder,
      keep_cache=True,
    )
    last = (length_P - 1)[:, None, None]
    hidden_PD = jnp.take_along_axis(hidden, last, axis=1)[:, 0]
    feature_PD = jnp.take_along_axis(feature, last, axis=1)[:, 0]
    caches = [LayerCache.open(k, v, slots, columns) for k, v in layers]
    return hidden_PD, feature_PD, tuple(caches)

  def decode(
    self,
    token_B: jax.Array,
    position_B: jax.Array,
    caches: tuple[LayerCache, ...],
    column: jax.Array,
    prompt_valid_PS: jax.Array,
    own_valid_BR: jax.Array,
    prompt_B: jax.Array | None = None,
    *,
    layers: list[Block],
    sharder: Sharder,
  ) -> tuple[jax.Array, jax.Array, tuple[LayerCache, ...]]:
    """Reads one new token a slot.

    Args:
      token_B: the tokens.
      position_B: their positions (prompt included).
      caches: one LayerCache a layer.
      column: int scalar, the column of the own caches to write.
      prompt_valid_PS: real prompt positions.
      own_valid_BR: columns that may be read, `column` included.
      prompt_B: the prompt of each slot; None = equal groups.
      layers: `self.layers()`, made once outside the decode loop.
      sharder: activation shardings.

    Returns:
      hidden_BD (final norm), feature_BD entering block f, updated caches.
    """
    config = self.config
    cos, sin = self.rotation(position_B[:, None])
    x = self.embed(token_B[:, None])
    feature = None
    updated = []
    for index, (layer, cache) in enumerate(zip(layers, caches, strict=True)):
      if index == config.split:
        feature = x
      x, cache = layer.decode(
        x,
        cos,
        sin,
        cache,
        column,
        prompt_valid_PS,
        own_valid_BR,
        prompt_B,
        sharder,
      )
      updated.append(cache)
    hidden = rms_norm(x, self.final_norm[...], config.norm_eps)
    return hidden[:, 0], feature[:, 0], tuple(updated)

  def layers(self) -> list[Block]:
    """All blocks one by one: the decode loop unrolls them.

    Of stacked parameters these are slices, which XLA copies once a program;
    `unstack_params` makes that copy where the parameters are moved anyway.
    """
    if hasattr(self, 'blocks'):
      return list(self.blocks)
    blocks = []
    for stack, count in (
      (self.low, self.config.split),
      (self.high, self.config.num_layers - self.config.split),
    ):
      graph, state = nnx.split(stack)
      blocks += [
        nnx.merge(graph, jax.tree.map(lambda x, i=i: x[i], state))
        for i in range(count)
      ]
    return blocks


@functools.cache
def _graph(config: ModelConfig, unstacked: bool = False):
  model = nnx.eval_shape(
    lambda: ReflectiveModel(config, rngs=nnx.Rngs(0), unstacked=unstacked)
  )
  return nnx.split(model)[0]
