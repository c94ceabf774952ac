"""Compiled memory of the loss at a real vocabulary, chunked against naive.

  python -m tests.benchmarks.log_prob_memory

Both programs are the gradient, in the hidden states and in the language-model
head, of a loss on the log-probs and the entropy of 4,096 tokens at vocabulary
152,064. They are compiled from shapes alone: nothing is allocated, nothing
runs. What is reported is `memory_analysis()` of the compiled program: the
temporaries, which is where the logits are (arguments and results are the same
in both forms).
"""

import argparse
import dataclasses
import time

import jax
import jax.numpy as jnp

from kernels.token_log_prob import op, reference

VOCABULARY = 152_064
LENGTH = 4_096
FORMS = {'naive': reference.token_log_prob, 'chunked': op.token_log_prob}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one compiled program, and the seconds its compilation took."""

  temporary: int
  argument: int
  output: int
  seconds: float


def measure(
  form: str,
  *,
  width: int,
  dtype: str = 'float32',
  batch: int = 1,
  length: int = LENGTH,
  vocabulary: int = VOCABULARY,
) -> Memory:
  """Compiles the gradient of the loss in one form.

  Args:
    form: 'naive' or 'chunked'.
    width: D, of the hidden states.
    dtype: of the hidden states and the head.
    batch: B rows.
    length: T tokens a row.
    vocabulary: V.
  """

  def loss(hidden_BTD, kernel_DV, target_BT):
    log_prob_BT, entropy_BT = FORMS[form](hidden_BTD, kernel_DV, target_BT)
    return -jnp.mean(log_prob_BT) - 1e-3 * jnp.mean(entropy_BT)

  start = time.monotonic()
  compiled = (
    jax.jit(jax.grad(loss, argnums=(0, 1)))
    .lower(
      jax.ShapeDtypeStruct((batch, length, width), dtype),
      jax.ShapeDtypeStruct((width, vocabulary), dtype),
      jax.ShapeDtypeStruct((batch, length), jnp.int32),
    )
    .compile()
  )
  seconds = time.monotonic() - start
  analysis = compiled.memory_analysis()
  return Memory(
    analysis.temp_size_in_bytes,
    analysis.argument_size_in_bytes,
    analysis.output_size_in_bytes,
    seconds,
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--widths', type=int, nargs='+', default=[64, 1536])
  parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
  options = parser.parse_args()
  print(
    f'jax {jax.__version__}, {jax.default_backend()}: gradient of the loss, '
    f'vocabulary {VOCABULARY:,} x {LENGTH:,} tokens, GB = 1e9 bytes\n'
  )
  print('| width | dtype | naive GB | chunked GB | ratio | compile s |')
  print('| ---: | --- | ---: | ---: | ---: | ---: |')
  for width in options.widths:
    for dtype in options.dtypes:
      naive, chunked = (
        measure(form, width=width, dtype=dtype) for form in FORMS
      )
      print(
        f'| {width} | {dtype} | {naive.temporary / 1e9:.3f} '
        f'| {chunked.temporary / 1e9:.3f} '
        f'| {naive.temporary / chunked.temporary:.1f} '
        f'| {naive.seconds:.1f} + {chunked.seconds:.1f} |'
      )


if __name__ == '__main__':
  main()
