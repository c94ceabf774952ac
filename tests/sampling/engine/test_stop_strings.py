"""Stop strings: where a brute-force search over the text says."""

import jax
import numpy as np
import pytest

from metastone_jax.errors import UserError
from metastone_jax.sampling.engine import StopStrings
from metastone_jax.sampling.engine.candidates import score_of
from tests.sampling import tiny
from tests.sampling.engine import served

P, N = 6, 4
CONFIG = tiny.sampling_config(temperature=0.8)
# Two letters a token: a string may begin in the middle of one.
TEXT = ['', '', '<>', '</>', '.', 'ab', 'ba', 'bb', 'aa', 'ca', 'ac', 'cb']


def _decode(tokens):
  return ''.join(TEXT[token] for token in tokens)


def _brute_force(token_R, strings) -> int | None:
  for count in range(1, len(token_R) + 1):
    if any(x in _decode(token_R[:count]) for x in strings):
      return count
  return None


@pytest.mark.parametrize('turns', [1, 3, 16])
@pytest.mark.parametrize('strings', [('ba',), ('cc', '.a', 'bab')])
def test_a_response_ends_where_a_string_is_complete(strings, turns):
  with jax.enable_x64(True):
    whole = {
      (c.request.draw, c.number): c
      for c in served.engine(CONFIG, num_slots=5).run(served.requests(P, N))
    }
    stop = StopStrings(strings, _decode)
    found = list(
      served.engine(CONFIG, num_slots=5, turns=turns).run(
        served.requests(P, N), stop=stop
      )
    )
    assert len(found) == P * N
    cut = 0
    for c in found:
      other = whole[c.request.draw, c.number]
      count = _brute_force(other.token_R.tolist(), strings)
      if count is None:
        np.testing.assert_array_equal(c.token_R, other.token_R)
        assert c.reason == other.reason
        np.testing.assert_allclose(c.score, other.score, rtol=1e-9)
        continue
      cut += count < len(other.token_R)
      assert c.reason == 'stop'
      np.testing.assert_array_equal(c.token_R, other.token_R[:count])
      last = served.last_logit(c.request, c.token_R)
      _, want = score_of(
        c.request.read, c.token_R, other.step_logit_R[:count], last, CONFIG
      )
      np.testing.assert_allclose(c.score, want, rtol=1e-9)
  assert 3 < cut < P * N


def test_traces_end_by_their_tag_only():
  with jax.enable_x64(True):
    found = list(
      served.engine(CONFIG, num_slots=5).run(
        served.requests(P, N, ends='trace'), stop=StopStrings(('a',), _decode)
      )
    )
  assert all(c.token_R[-1] == tiny.UNTHINK for c in found)


def test_an_empty_string_is_refused():
  with pytest.raises(UserError, match='a stop string is empty'):
    StopStrings(('x', ''), _decode)
