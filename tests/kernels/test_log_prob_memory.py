"""The logits of a whole sequence never exist: read from the compiler."""

from tests.benchmarks import log_prob_memory


def test_the_loss_needs_ten_times_less_memory_than_the_naive_form():
  """Vocabulary 152,064 x 4,096 tokens: the naive logits alone are 2.5 GB."""
  naive = log_prob_memory.measure('naive', width=64)
  chunked = log_prob_memory.measure('chunked', width=64)
  assert naive.argument == chunked.argument
  assert naive.output == chunked.output
  logits = log_prob_memory.LENGTH * log_prob_memory.VOCABULARY * 4
  assert naive.temporary >= logits
  assert chunked.temporary > 0
  assert naive.temporary >= 10 * chunked.temporary, (naive, chunked)
