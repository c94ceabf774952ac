"""What the score head is of a decode step: shares of arithmetic and of bytes.

  python -m tests.benchmarks.head_cost

Counted by hand (compile_check/accounting.py), for 32 slots of 4 problems with
prompts of 2,048 tokens and 4,096 written, each scored in every step. Where the
backbone is split over devices and the head is not, its share grows.
"""

from metastone_jax.compile_check import accounting
from metastone_jax.model import preset

PROBLEMS, CANDIDATES, PROMPT, CONTEXT = 4, 8, 2048, 4096


def shares(model: str, tensor: int) -> tuple[float, float]:
  """(of FLOPs, of bytes) in one step, of a device.

  Args:
    model: a preset, for example '32b'.
    tensor: devices that split the backbone; every one has the whole head.
  """
  config = preset(model)
  step = accounting.decode_step(
    config,
    problems=PROBLEMS,
    candidates=CANDIDATES,
    prompt=PROMPT,
    context=CONTEXT,
    devices=tensor,
    tensor=tensor,
  )
  head_bytes = 2.0 * config.num_score_parameters
  head_flops = 4.0 * PROBLEMS * CANDIDATES * (config.width**2 + config.width)
  # The step counts the head's weights as split, too.
  total = step.memory_bytes + head_bytes * (1 - 1 / tensor)
  return head_flops / tensor / step.flops, head_bytes / total


def main() -> None:
  """Prints the table."""
  print('| model | devices | of FLOPs % | of bytes % |')
  print('| --- | ---: | ---: | ---: |')
  for model in ('1.5b', '7b', '32b'):
    for tensor in (1, 4):
      flops, moved = shares(model, tensor)
      print(f'| {model} | {tensor} | {100 * flops:.2f} | {100 * moved:.2f} |')


if __name__ == '__main__':
  main()
