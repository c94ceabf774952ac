"""A separate reward model of the same backbone, which reads finished traces.

A good one: a second copy of the weights in the same process; traces of like
length are read together, a batch as large as the sampler's, padded to the next
multiple of 32; only the blocks below its head are run, no policy head; only
marks are scored. Each trace is read behind its prompt, in one pass. (The
released server reads one trace at a time over HTTP, all blocks, all logits.)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from metastone_jax import sprm
from metastone_jax.model import ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.scaling import compute
from metastone_jax.scaling.runs import head_cost
from tests.benchmarks.sampler import work

_MULTIPLE = 32


class RewardModel:
  """Scores drawn responses of a `Work`.

  With the policy's own weights, so that its scores must be those of the loop.
  """

  def __init__(self, one: work.Work):
    self._work = one
    # A copy: a reward model shares no memory with the policy.
    self._params = jax.tree.map(jnp.copy, work.parameters(one.model))
    self._program = jax.jit(functools.partial(_scores, one))

  def judge(self, drawn: work.Drawn) -> work.Drawn:
    """The same responses with its scores."""
    prompt, read = self._work.prompts
    rows = {
      key: np.concatenate([prompt[key[0], : read[key[0]]], token])
      for key, (token, _) in drawn.items()
    }
    keys = sorted(rows, key=lambda key: len(rows[key]))
    scores = {}
    for first in range(0, len(keys), self._work.slots):
      batch = keys[first : first + self._work.slots]
      longest = -(-len(rows[batch[-1]]) // _MULTIPLE) * _MULTIPLE
      # Rows of the last batch that hold nothing: one shape less to compile.
      token = np.full((self._work.slots, longest), work.PAD, np.int32)
      lengths = np.zeros((2, self._work.slots), np.int32)
      for row, key in enumerate(batch):
        token[row, : len(rows[key])] = rows[key]
        lengths[:, row] = read[key[0]], len(rows[key])
      score_B = jax.device_get(self._program(self._params, token, *lengths))
      scores |= dict(zip(batch, score_B.tolist(), strict=False))
    return {key: (drawn[key][0], scores[key]) for key in drawn}


def _scores(one: work.Work, params, token_BT, read_B, length_B):
  """Trace scores (B,) of rows of `length_B`, prompts of `read_B` included."""
  config, sampling = work.MODELS[one.model], one.sampling
  model = ReflectiveModel.bind(config, params)
  place_T = jnp.arange(token_BT.shape[1])
  real_BT = place_T < length_B[:, None]
  # Nobody asks for what comes after the feature, so XLA drops it.
  _, feature_BTD, _ = model(
    token_BT,
    jnp.broadcast_to(place_T, token_BT.shape),
    real_BT.astype(jnp.int32),
    sharder=Sharder(),
  )
  mark_BT = sprm.step_feature_mask(
    token_BT,
    step_ids=sampling.step_ids,
    think_start_id=sampling.think_start_id,
    think_end_id=sampling.think_end_id,
    side=sampling.score_side,
  )
  # As `sampling.judging.judge`: marks of the response, before they come.
  mark_BT &= (place_T >= read_B[:, None] - 1) & (
    place_T < length_B[:, None] - 1
  )
  logit_BT, _ = model.step_scores(feature_BTD, mark_BT, sharder=Sharder())
  return sprm.trace_score(logit_BT, mark_BT)


def counted(one: work.Work, drawn: work.Drawn) -> tuple[float, float]:
  """FLOPs of judging over those of drawing: the score head's, the PRM's."""
  shape = head_cost.shape_of(work.MODELS[one.model])
  prompt_P = one.prompts[1]
  tokens_PN, marks_PN = np.zeros((2, one.problems, one.candidates))
  for (p, n), (token, _) in drawn.items():
    tokens_PN[p, n] = len(token)
    marks_PN[p, n] = np.isin(token, one.sampling.step_ids).sum()
  shares = []
  for judge in (
    compute.of_head(shape, marks_PN),
    compute.of_prm(
      shape, prompt=prompt_P[:, None], tokens=tokens_PN, marks=marks_PN
    ),
  ):
    cost = compute.of_samples(
      shape,
      prompt=prompt_P,
      tokens_N=tokens_PN,
      thinking_N=tokens_PN,
      judge=judge,
    )
    scoring, all_of_it = cost.scoring.sum(), cost.flops.sum()
    shares.append(float(scoring / (all_of_it - scoring)))
  return shares[0], shares[1]
