"""The benchmark's separate reward model against a forward pass written out."""

import numpy as np

from metastone_jax.model import ModelConfig
from tests.benchmarks.sampler import prm, work
from tests.model import naive

CONFIG = ModelConfig(
  vocab_size=64,
  width=16,
  num_layers=3,
  num_heads=2,
  num_kv_heads=1,
  head_width=8,
  feed_forward=24,
)
# Three responses in batches of two: the last is not full.
ONE = work.Work('small', 3, 1, 12, 30, 2)
MARK = 38
RESPONSES = (
  # A run of marks counts once, one right behind <think> not at all, one that
  # ends the response does.
  (MARK, 7, 9, MARK, MARK, 11, MARK),
  (7, 9, 11),
  (7, MARK, 9, 11, MARK, 7, work.UNTHINK, MARK, 9),
)
# In the response: of the tokens whose step counts.
COUNTED = ((3, 6), (), (1, 4))


def test_scores_and_counts(monkeypatch):
  params = naive.random_params(CONFIG)
  monkeypatch.setitem(work.MODELS, 'small', CONFIG)
  monkeypatch.setattr(work, 'parameters', lambda name: params)
  drawn = {
    (p, 0): (np.array(tokens, np.int32), 0.0)
    for p, tokens in enumerate(RESPONSES)
  }
  prompt, read = ONE.prompts
  judged = prm.RewardModel(ONE).judge(drawn)
  for p, places in enumerate(COUNTED):
    row = np.concatenate([prompt[p, : read[p]], RESPONSES[p]])
    _, residuals = naive.forward(params, CONFIG, row[None])
    z = np.asarray(naive.score_head(params, residuals[-2]))[0]
    steps = [-np.logaddexp(0, -z[read[p] + place - 1]) for place in places]
    want = np.exp(np.mean(steps)) if steps else 0
    np.testing.assert_allclose(judged[p, 0][1], want, rtol=1e-4)
    np.testing.assert_array_equal(judged[p, 0][0], RESPONSES[p])

  head, separate = prm.counted(ONE, drawn)
  drawing = sum(CONFIG.prefill_flops(int(n)) for n in read) + sum(
    CONFIG.decode_flops(len(tokens), int(n))
    for tokens, n in zip(RESPONSES, read, strict=True)
  )
  marks = sum(tokens.count(MARK) for tokens in RESPONSES)
  # D + 1 = 17 multiply-adds for each of the head's 32 units.
  np.testing.assert_allclose(head, marks * 2 * 32 * 17 / drawing, rtol=1e-12)
  assert head < separate < 1
