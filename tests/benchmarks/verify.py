"""How fast answers are verified, and what one that hangs costs the others.

  python -m tests.benchmarks.verify [--checks=10000] [--raw]

Two loads: `numbers`, answers such as AIME's, and `table`, the pairs of
tests/tasks/verifiers/math_pairs.jsonl over and over, a third of which go to
math-verify. Processes are started and have imported everything before the clock
runs. A hanging check is killed at the deadline and its process started anew.
With --raw math-verify judges the table by itself, in this process: how many
answers it takes for right that are not.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import time

from metastone_jax.tasks import Problem, VerifierPool
from metastone_jax.tasks.verifiers import Verifier, get_verifier
from tests.tasks.hostile import Hostile

_TABLE = pathlib.Path(__file__).parents[1] / 'tasks/verifiers/math_pairs.jsonl'
_DEADLINE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Check:
  """One response to be verified."""

  problem: Problem
  text: str
  verifier: Verifier


def _pairs() -> list[dict]:
  pairs = [json.loads(line) for line in _TABLE.read_text().splitlines()]
  return [pair for pair in pairs if 'repeat' not in pair]


def load(kind: str, count: int) -> list[Check]:
  """Checks of one kind.

  Args:
    kind: 'numbers' or 'table'.
    count: how many.
  """
  verifier = get_verifier('math')
  if kind == 'numbers':
    pairs = [(str(i), str(i + i % 3)) for i in range(count)]
  else:
    table = [(pair['gold'], pair['answer']) for pair in _pairs()]
    pairs = [table[i % len(table)] for i in range(count)]
  return [
    Check(
      Problem('t', f't/{i}', 'q', gold, {}),
      f'{"steps. " * 300}</think>\\boxed{{{answer}}}',
      verifier,
    )
    for i, (gold, answer) in enumerate(pairs)
  ]


def measure(checks: list[Check], workers: int, hanging: int) -> dict:
  """Throughput of one pool.

  Args:
    checks: to be done.
    workers: processes.
    hanging: checks that never end, spread among the others.
  """
  hangs = Check(checks[0].problem, 'hang', Hostile())
  with VerifierPool(workers, deadline_s=_DEADLINE_S) as pool:
    warm = [
      pool.submit(check.verifier, check.problem, check.text)
      for check in [checks[0]] * 100 * workers
    ]
    for future in warm:
      pool.result(future)
    queue = list(checks)
    for i in range(hanging):
      queue.insert((i + 1) * len(checks) // (hanging + 1), hangs)
    ends = []
    started = time.perf_counter()
    futures = []
    for check in queue:
      future = pool.submit(check.verifier, check.problem, check.text)
      if check is not hangs:
        future.add_done_callback(lambda _: ends.append(time.perf_counter()))
      futures.append(future)
    verdicts = [pool.result(future) for future in futures]
    seconds = time.perf_counter() - started
  return {
    'seconds': seconds,
    'others': max(ends) - started,
    'rate': len(checks) / (max(ends) - started),
    'right': sum(verdict.reward for verdict in verdicts),
    'failed': sum(bool(verdict.failure) for verdict in verdicts),
  }


def raw() -> None:
  """math-verify alone on the table."""
  from math_verify import parse, verify

  wrong, missed, seconds = 0, 0, time.perf_counter()
  for pair in _pairs():
    right = False
    with contextlib.suppress(Exception):
      right = verify(
        parse(f'\\boxed{{{pair["gold"]}}}'),
        parse(f'\\boxed{{{pair["answer"]}}}'),
      )
    wrong += right and not pair['equal']
    missed += pair['equal'] and not right
  seconds = time.perf_counter() - seconds
  print(
    f'math-verify alone, {len(_pairs())} pairs: {wrong} false positives, '
    f'{missed} false negatives, {seconds:.1f} s'
  )


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--checks', type=int, default=10_000)
  parser.add_argument('--raw', action='store_true')
  args = parser.parse_args()
  if args.raw:
    raw()
    return
  print(
    '| load | workers | hanging | all, s | all others, s | others/s | right | '
    'failed |'
  )
  print('| --- | --- | --- | --- | --- | --- | --- | --- |')
  for kind in ('numbers', 'table'):
    checks = load(kind, args.checks)
    for workers in (1, 2):
      for hanging in (0, 1):
        found = measure(checks, workers, hanging)
        print(
          f'| {kind} | {workers} | {hanging} | {found["seconds"]:.2f} | '
          f'{found["others"]:.2f} | {found["rate"]:.0f} | '
          f'{found["right"]:.0f} | {found["failed"]} |',
          flush=True,
        )


if __name__ == '__main__':
  main()
