"""Slots, prompts and caches to decode with, and what must come out."""

import numpy as np

NAMES = (
  'q_BHh',
  'prompt_k_PKhS',
  'prompt_v_PKSh',
  'own_k_BKhR',
  'own_v_BKRh',
  'prompt_valid_PS',
  'own_valid_BR',
)


def make(counts, S, R, K, G, h, *, seed=0, sharpness=1.0):
  """float64 arrays in the order of `NAMES`, and prompt_B.

  Prompts of any length, own masks with holes, and the first slot without a
  valid own position.

  Args:
    counts: slots of each prompt.
    S, R: positions of a prompt's and of a slot's cache.
    K, G, h: key/value heads, queries a head, width.
    seed: of the numbers.
    sharpness: scale of the queries.
  """
  rng = np.random.default_rng(seed)
  P, B = len(counts), sum(counts)
  prompt_B = np.repeat(np.arange(P, dtype=np.int32), counts)
  normal = lambda *shape: rng.normal(size=shape)  # noqa: E731
  length_P = rng.integers(1, S + 1, size=(P, 1))
  length_B = rng.integers(0, R + 1, size=(B, 1))
  own_valid = (np.arange(R) < length_B) & (rng.random((B, R)) < 0.7)
  own_valid[:1] = False
  arrays = (
    sharpness * normal(B, K * G, h),
    normal(P, K, h, S),
    normal(P, K, S, h),
    normal(B, K, h, R),
    normal(B, K, R, h),
    np.arange(S) < length_P,
    own_valid,
  )
  return arrays, prompt_B


def want(arrays, prompt_B) -> np.ndarray:
  """float64 (B, H, h), slot by slot and head by head."""
  q, prompt_k, prompt_v, own_k, own_v, prompt_valid, own_valid = (
    np.asarray(x, bool if x.dtype == bool else np.float64) for x in arrays
  )
  B, H, h = q.shape
  G = H // prompt_k.shape[1]
  out = np.zeros((B, H, h))
  for b in range(B):
    p = prompt_B[b]
    for i in range(H):
      keys = np.concatenate(
        [
          prompt_k[p, i // G][:, prompt_valid[p]],
          own_k[b, i // G][:, own_valid[b]],
        ],
        axis=1,
      )
      values = np.concatenate(
        [
          prompt_v[p, i // G][prompt_valid[p]],
          own_v[b, i // G][own_valid[b]],
        ]
      )
      score = q[b, i] @ keys / np.sqrt(h)
      weight = np.exp(score - score.max())
      out[b, i] = weight @ values / weight.sum()
  return out
