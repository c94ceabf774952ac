"""What the sampler is worth on a CPU, case by case.

  python -m tests.benchmarks.sampler [--case=all --repeats=5 --larger]
    [--tunix_python=PATH]

- refills: the engine against a fixed batch of ours, on unequal lengths;
- scoring: the engine without scores, with scores in the loop, and with a
  separate reward model of the same backbone behind it (20 rounds at least);
- prompt: k candidates of one prompt against k copies of it;
- transformers: generate and a second scoring pass, as released and batched
  (needs the package's extras for export);
- tunix: google-tunix's sampler (needs PATH, a Python with google-tunix:
  `pip install google-tunix` in a venv of its own).

Random weights, float32, all cores. Both sides have the same weights, prompts,
lengths and rows at a time; nothing that is timed compiles; forms take turns;
numbers are medians with an interval, ratios of each round.
"""

import argparse

from tests.benchmarks.sampler import against, refills, scoring, shared_prompt

LEAST_PAIRS = 20


def main() -> None:
  """Parses, runs the cases."""
  cases = {
    'refills': lambda args: refills.run(args.repeats),
    'scoring': lambda args: scoring.run(args.pairs or LEAST_PAIRS),
    'prompt': lambda args: shared_prompt.run(args.repeats, args.larger),
    'transformers': lambda args: against.transformers(
      args.repeats, args.larger
    ),
    'tunix': lambda args: against.tunix(
      args.repeats, args.tunix_python, args.larger
    ),
  }
  parser = argparse.ArgumentParser(
    prog='python -m tests.benchmarks.sampler',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('--case', choices=(*cases, 'all'), default='all')
  parser.add_argument('--repeats', type=int, default=5, help='rounds')
  parser.add_argument('--pairs', type=int, default=0, help='of case scoring')
  parser.add_argument(
    '--larger', action='store_true', help='also a model of 78 M parameters'
  )
  parser.add_argument(
    '--tunix_python', default='', help='a Python that has google-tunix'
  )
  args = parser.parse_args()
  for name, case in cases.items():
    if args.case in (name, 'all'):
      case(args)
      print()


if __name__ == '__main__':
  main()
