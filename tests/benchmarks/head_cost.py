"""What the score head is of a decode step: shares of arithmetic and of bytes.

  python -m tests.benchmarks.head_cost

Counted by hand (compile_check/accounting.py), for 32 slots of 4 problems with
prompts of 2,048 tokens and 4,096 written, each scored in every step. Devices
that share the weights share the head and the caches too: the share is the same.
"""

from metastone_jax.compile_check import accounting
from metastone_jax.model import preset

MODELS = ('1.5b', '7b', '32b')
PROBLEMS, CANDIDATES, PROMPT, CONTEXT = 4, 8, 2048, 4096


def shares(model: str) -> tuple[float, float]:
  """(of FLOPs, of bytes) in one step.

  Args:
    model: one of MODELS.
  """
  config = preset(model)
  step = accounting.decode_step(
    config,
    slots=PROBLEMS * CANDIDATES,
    prompts=PROBLEMS,
    prompt=PROMPT,
    context=CONTEXT,
    devices=1,
    tensor=1,
  )
  flops = config.score_flops(PROBLEMS * CANDIDATES)
  moved = 2.0 * config.num_score_parameters
  return flops / step.flops, moved / step.memory_bytes


def main() -> None:
  """Prints the table."""
  print('| model | of FLOPs % | of bytes % |')
  print('| --- | ---: | ---: |')
  for model in MODELS:
    flops, moved = shares(model)
    print(f'| {model} | {100 * flops:.2f} | {100 * moved:.2f} |')


if __name__ == '__main__':
  main()
