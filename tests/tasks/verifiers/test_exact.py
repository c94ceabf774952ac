"""Exact text, after normalisation."""

import pytest

from metastone_jax.tasks import base
from metastone_jax.tasks.verifiers import exact


def _verdict(answer, response, **options):
  problem = base.Problem('t', 't/0', 'Who?', answer, {})
  return exact.Exact(**options).verify(problem, response)


@pytest.mark.parametrize(
  ('answer', 'response', 'right'),
  [
    ('Paris', '</think>Paris', True),
    ('Paris', '</think>\n\n Paris.\n<|im_end|>', True),
    ('Paris', '</think>巴黎', False),
    ('New York', '</think>New \n  York', True),
    ('Ａ１', '</think>A1', True),
    ('北京。', '</think>北京', True),
    ('Paris', '</think>paris', False),
    ('Paris', '</think>It is \\boxed{Paris}, not Rome', True),
    ('Paris', '</think>\\boxed{Paris} or \\boxed{Rome}', False),
    ('Paris', '</think>It is Paris', False),
    ('3.', '</think>3', True),
    ('3', '</think>30', False),
  ],
)
def test_right(answer, response, right):
  verdict = _verdict(answer, response)
  assert verdict.parsed and verdict.reward == float(right)


def test_case_where_asked():
  assert _verdict('Paris', '</think>PARIS', ignore_case=True).reward == 1.0
  assert _verdict('Straße', '</think>STRASSE', ignore_case=True).reward == 1.0


@pytest.mark.parametrize(
  'response',
  [
    'Paris',
    '</think>',
    '</think> . ',
    '</think>\\boxed{Paris',
    '</think>' + 'x' * 10**6,
  ],
)
def test_nothing_to_read(response):
  assert _verdict('Paris', response) == base.UNPARSED


def test_equal_answers_vote_together():
  keys = {
    _verdict('x', f'</think>{text}').answer_key
    for text in ('New York', ' New  York. ', '\\boxed{New York}')
  }
  assert keys == {'New York'}


def test_a_bad_row_is_named():
  verifier = exact.Exact()
  problem = base.Problem('t', 't/0', 'Who?', ' . ', {})
  assert verifier.check(problem) == 'its answer is empty'
  assert not verifier.isolated
