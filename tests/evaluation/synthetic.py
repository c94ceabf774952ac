"""Made-up samples and metric rows that look like a real run."""

import numpy as np

from metastone_jax.evaluation.samples import EvaluationSamples


def make_samples(seed=0, P=40, N=8, gap=1.0, skill=0.6, task='signs'):
  """Right answers share id 0; `gap` separates the scores within a problem."""
  rng = np.random.default_rng(seed)
  chance_P1 = rng.beta(2 * skill, 2 * (1 - skill), size=(P, 1))
  correct = rng.random((P, N)) < chance_P1
  answers = np.where(correct, 0, rng.integers(1, 9, size=(P, N)))
  answers[~correct & (rng.random((P, N)) < 0.05)] = -1
  logits = gap * (2 * correct - 1) + 1.2 * rng.standard_normal((P, N))
  logits += 0.8 * rng.standard_normal((P, 1))
  return EvaluationSamples(
    task=task,
    scores_PN=1 / (1 + np.exp(-logits)),
    correct_PN=correct,
    answers_PN=answers,
    finished_PN=rng.random((P, N)) < 0.97,
    tokens_PN=rng.integers(20, 60, size=(P, N)),
    problem_ids=[f'{task}-{p}' for p in range(P)],
  )


def make_metrics(seed=0, restart=False):
  """Rows of three phases, 150 + 300 + 120 steps, evaluations in between."""
  rng = np.random.default_rng(seed)
  rows, step = [], 0
  for phase, length in (('warmup', 150), ('head', 300), ('joint', 120)):
    for i in range(length):
      t, noise = i / length, rng.standard_normal(8)
      row = {'step': i if restart else step, 'phase': phase}
      if phase != 'joint':
        row['loss/lm'] = 0.3 + np.exp(-step / 60) + 0.02 * noise[0]
      if phase != 'warmup':
        grown = t if phase == 'head' else 1 + t
        row['loss/spr'] = 0.7 - 0.15 * grown + 0.03 * noise[1]
        row['score/auc_within'] = 0.5 + 0.13 * grown + 0.03 * noise[2]
        row['score/auc_across'] = 0.6 + 0.13 * grown + 0.02 * noise[3]
        row['score/mean_correct'] = 0.5 + 0.16 * grown + 0.02 * noise[4]
        row['score/mean_wrong'] = 0.5 - 0.13 * grown + 0.02 * noise[5]
      if phase == 'joint':
        row['loss/policy'] = 0.01 * noise[6]
        row['loss/kl'] = 1e-3 * (t + 0.1 * abs(noise[7]))
        row['loss/entropy'] = 0.4 - 0.1 * t + 0.01 * noise[0]
        row['reward/mean'] = 0.6 + 0.1 * t + 0.03 * noise[1]
      rows.append(row)
      step += 1
    gain = {'warmup': 0.0, 'head': 0.1, 'joint': 0.2}[phase]
    rows.append(
      {
        'step': rows[-1]['step'],
        'phase': phase,
        'eval/pass_at_1': 0.5 + gain,
        'eval/majority_at_8': 0.58 + 0.7 * gain,
        'eval/best_of_8': 0.5 + 1.7 * gain,
        'note': 'not a number',
        'loss/lm': None,
      }
    )
  return rows
