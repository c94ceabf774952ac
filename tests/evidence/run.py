"""The evidence behind the tiny recipe: three seeds, controls, one table.

  make evidence          (hours on 2 cores; the same command again goes on)

For each seed: the main job; a control that goes on with the same supervised
set for the same seconds (its best held-out checkpoint counts, which favours
it); the same control given what the main job never sees, a RIGHT demonstration
for every problem of that set; and from the same warmed head the joint phase
without the language-model loss and with the paper's filtered SPR loss. Writes
docs/evidence.md from the saved samples; `--table_only` only rewrites it.
"""

import argparse
import json
import pathlib
import platform
import subprocess
import sys

import numpy as np

from metastone_jax import evaluation

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNS = ROOT / 'runs' / 'evidence'
CONFIG = 'configs/tiny.py'
TASK = 'signs'


def train(name: str, *flags: str) -> None:
  """Runs or resumes one training job to its end."""
  if (RUNS / name / 'summary.json').exists():
    print(f'{name}: done before', flush=True)
    return
  command = [
    sys.executable,
    '-m',
    'launch.train',
    f'--config={CONFIG}',
    f'--workdir={RUNS / name}',
    *flags,
  ]
  print('$ ' + ' '.join(command), flush=True)
  subprocess.run(command, cwd=ROOT, check=True)


def recipe_of(name: str) -> dict:
  """The recipe a run was made with."""
  return json.loads((RUNS / name / 'config.json').read_text())


def phase_ends(name: str) -> dict[str, int]:
  """Phase name -> number of steps done at its end."""
  ends, total = {}, 0
  for phase in recipe_of(name)['phases']:
    total += phase['steps']
    ends[phase['name']] = total
  return ends


def seconds_of(name: str) -> dict[str, float]:
  """Seconds by part, as the last checkpoint has them."""
  from metastone_jax.checkpoints import CheckpointManager

  with CheckpointManager(RUNS / name / 'checkpoints', read_only=True) as m:
    return m.read_extra()[0]['seconds']


def control_steps(main: str) -> int:
  """Supervised steps that fill the seconds of the head and joint phases."""
  seconds = seconds_of(main)
  warmup = next(p for p in recipe_of(main)['phases'] if p['name'] == 'warmup')
  per_step = seconds['phase_warmup'] / warmup['steps']
  steps = (seconds['phase_head'] + seconds['phase_joint']) / per_step
  return max(200, round(steps / 100) * 100)


def branch(main: str, after: str, phase: str) -> list[str]:
  """Flags of a job that runs one phase from the end of another."""
  return [
    f'--config.start_from={RUNS / main / "checkpoints"}',
    f'--config.start_from_step={phase_ends(main)[after]}',
    f"--config.phase_order=('{phase}',)",
  ]


def control(name: str, seed: int, *flags: str) -> None:
  """Supervised training instead of the head and joint phases."""
  main = f'main-{seed}'
  train(
    name,
    f'--config.seed={seed}',
    *branch(main, 'warmup', 'control'),
    f'--config.phases.control.steps={control_steps(main)}',
    '--config.evaluation.small_problems=512',
    '--config.evaluation.final_samples=16',
    *flags,
  )


def jobs(seeds: list[int]) -> None:
  """Every run, the most informative first."""
  for seed in seeds:
    train(f'main-{seed}', f'--config.seed={seed}')
  for seed in seeds:
    control(f'control-{seed}', seed)
  for seed in seeds:
    for phase in ('joint_no_lm', 'joint_spr'):
      train(
        f'{phase}-{seed}',
        f'--config.seed={seed}',
        *branch(f'main-{seed}', 'head', phase),
      )
    control(
      f'control_right-{seed}',
      seed,
      f'--config.data.task_options.{TASK}.random_demonstrations=0.0',
    )


def load(name: str, stage: str) -> evaluation.EvaluationSamples:
  """Samples of a stage of a run."""
  return evaluation.EvaluationSamples.load(
    RUNS / name / 'evaluation' / f'{stage}-{TASK}.npz'
  )


def best_control(name: str):
  """(steps, samples) of the control's best held-out evaluation."""
  found = []
  for path in (RUNS / name / 'evaluation').glob('step-*.npz'):
    samples = evaluation.EvaluationSamples.load(path)
    found.append(
      (samples.correct_PN.mean(), int(path.stem.split('-')[1]), samples)
    )
  last = load(name, 'control')
  found.append(
    (last.correct_PN.mean(), recipe_of(name)['phases'][0]['steps'], last)
  )
  _, steps, samples = max(found, key=lambda item: item[:2])
  return steps, samples


def per_problem(samples, kind: str, k: int = 8) -> np.ndarray:
  """Accuracy of each problem under one way to answer."""
  if kind == 'pass@1':
    return samples.correct_PN.mean(axis=1)
  if kind == 'majority':
    return evaluation.majority_at_k(
      samples.answers_PN, samples.correct_PN, k, per_problem=True
    )
  return evaluation.best_of_k(
    samples.scores_PN,
    samples.correct_PN,
    k,
    finished_PN=samples.finished_PN & (samples.answers_PN >= 0),
    per_problem=True,
  )


def points(interval) -> str:
  """An interval in percentage points."""
  return (
    f'{100 * interval.mean:.1f} ({100 * interval.low:.1f} to '
    f'{100 * interval.high:.1f})'
  )


def stage_row(label: str, samples) -> str:
  """One row of the accuracy table."""
  summary = evaluation.summarise(samples, (1, 2, 8, 32))
  rows = {row['k']: row for row in summary['rows']}
  cells = [f'{100 * summary["pass_at_1"]["mean"]:.1f}']
  for k, column in (
    (8, 'majority'),
    (8, 'weighted_vote'),
    (8, 'best_of_k'),
    (32, 'best_of_k'),
    (8, 'oracle'),
  ):
    cells.append(f'{100 * rows[k][column]["mean"]:.1f}' if k in rows else '-')
  within = summary['auc']['within']['mean']
  cells.append('-' if within is None else f'{within:.3f}')
  return f'| {label} | ' + ' | '.join(cells) + ' |'


def write_table(seeds: list[int]) -> pathlib.Path:
  """docs/evidence.md's generated part, from what is on disk."""
  lines = [
    '| run, stage | pass@1 | majority@8 | weighted vote@8 | SPRM best-of-8 |'
    ' SPRM best-of-32 | oracle@8 | AUC within |',
    '| --- | --- | --- | --- | --- | --- | --- | --- |',
  ]
  paired = [
    '| seed | joint - head, pass@1 | joint - control, pass@1 | joint -'
    ' control_right, pass@1 | best-of-8 -'
    ' majority@8 | best-of-8 - pass@1 | best-of-32 - best-of-8 |',
    '| --- | --- | --- | --- | --- | --- | --- |',
  ]
  over_majority, over_single = [], []
  for seed in seeds:
    main = f'main-{seed}'
    if not (RUNS / main / 'summary.json').exists():
      continue
    head, joint = load(main, 'head'), load(main, 'joint')
    for stage in ('warmup', 'head', 'joint'):
      lines.append(stage_row(f'seed {seed}, {stage}', load(main, stage)))
    single = per_problem(joint, 'pass@1')
    over_control = []
    for kind in ('control', 'control_right'):
      name = f'{kind}-{seed}'
      if not (RUNS / name / 'summary.json').exists():
        over_control.append('not run')
        continue
      steps, samples = best_control(name)
      lines.append(
        stage_row(f'seed {seed}, {kind} (best: step {steps})', samples)
      )
      over_control.append(
        points(
          evaluation.paired_interval(single, per_problem(samples, 'pass@1'))
        )
      )
    for variant in ('joint_no_lm', 'joint_spr'):
      name = f'{variant}-{seed}'
      if (RUNS / name / 'summary.json').exists():
        lines.append(stage_row(f'seed {seed}, {variant}', load(name, variant)))
    best8 = per_problem(joint, 'best')
    majority = per_problem(joint, 'majority')
    over_majority.append((best8 - majority).mean())
    over_single.append((best8 - single).mean())
    paired.append(
      f'| {seed} | '
      + ' | '.join(
        [
          points(
            evaluation.paired_interval(single, per_problem(head, 'pass@1'))
          ),
          *over_control,
          points(evaluation.paired_interval(best8, majority)),
          points(evaluation.paired_interval(best8, single)),
          points(
            evaluation.paired_interval(per_problem(joint, 'best', 32), best8)
          ),
        ]
      )
      + ' |'
    )
  text = '\n'.join(
    [
      '# Evidence for the tiny recipe',
      '',
      f'Made by `make evidence` on {platform.machine()}, '
      f'{platform.system()}; {TASK} task, 512 held-out problems, accuracy in '
      '%, 95 % intervals (BCa bootstrap over problems).',
      '',
      *lines,
      '',
      'Paired differences on the same problems, percentage points:',
      '',
      *paired,
      '',
      f'Mean of {len(over_majority)} seeds: best-of-8 minus majority@8 '
      f'{100 * np.mean(over_majority):.1f} points, minus pass@1 '
      f'{100 * np.mean(over_single):.1f} points.'
      if over_majority
      else 'No run has finished yet.',
      '',
    ]
  )
  notes = ROOT / 'docs' / 'evidence_notes.md'
  if notes.exists():
    text += '\n' + notes.read_text()
  path = ROOT / 'docs' / 'evidence.md'
  path.write_text(text)
  return path


def main() -> None:
  """Parses the flags, runs the jobs, writes the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--table_only', action='store_true')
  args = parser.parse_args()
  if not args.table_only:
    jobs(args.seeds)
  print(f'table: {write_table(args.seeds)}')


if __name__ == '__main__':
  main()
