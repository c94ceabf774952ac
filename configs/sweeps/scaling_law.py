r"""Accuracy against compute: size x k x thinking budget x strategy x seed.

  python -m launch.sweep --config=configs/sweeps/scaling_law.py

Trains `configs/tiny.py` at three widths, draws 128 samples of 256 held-out
problems from each model with each thinking budget, and derives every k and
strategy from them; writes docs/scaling_law.md. About 35 minutes a seed with
--workers=2 on 2 cores.

Arguments, separated by commas: `seeds=N` (2), `smoke` (two models that hardly
learn, one seed, easier problems, two minutes: to see all of it work). For
example configs/sweeps/scaling_law.py:smoke,seeds=2.
"""

import ml_collections

from metastone_jax import grid

# The shape of configs/tiny.py (width 96) narrower and wider: 0.12, 0.44 and
# 0.96 M parameters.
_WIDTHS = (48, 96, 144)
# A step takes 5 tokens with its mark, and each of a problem's 4 or 5 numbers a
# step. So 15 ends all traces before their last step, 20 the longer ones; a
# budget within a step would end it before its mark, which no model here has
# seen. 0 = no budget.
_BUDGETS = (15, 20, 0)
# Evaluations inside a run are not what this sweep is for.
_RUN = {
  'phases.warmup.evaluate_every': 0,
  'phases.head.evaluate_every': 0,
  'phases.joint.evaluate_every': 0,
  # Half of the recipe's: the main job needs 10 minutes, six runs an hour.
  'phases.joint.steps': 40,
  'evaluation.problems': 64,
  'evaluation.stage_samples': 8,
  'evaluation.final_samples': 8,
  'evaluation.ks': (1, 2, 8),
}
_DRAW = dict(
  task='signs',
  problems=256,  # held out
  samples=128,  # a problem: at k = 64 every sample is in half of all subsets
  ks=(1, 2, 4, 8, 16, 32, 64),
  # Tokens, where pruning looks first: after 2 or 3 steps.
  first_milestones=(10, 15),
  slots=512,  # responses that are drawn at a time
)
_SMOKE_RUN = {
  **_RUN,
  'phase_order': ('warmup', 'head'),
  'data.tasks': {'signs': 1.0},
  'data.task_options': {'signs': {'min_terms': 1, 'max_terms': 2}},
  'data.num_demonstrations': 1024,
  'phases.warmup.steps': 150,
  'phases.warmup.backbone_learning_rate': 1e-2,
  'phases.head.steps': 8,
  'phases.head.prompts_per_step': 8,
  'phases.head.updates_per_rollout': 1,
  'evaluation.problems': 16,
}
_SMOKE_DRAW = {
  **_DRAW,
  'problems': 32,
  'samples': 32,
  'ks': (1, 2, 4, 8, 16),
  'first_milestones': (5,),
  'slots': 256,
}


def get_config(arg: str = ''):
  """The sweep; see the module docstring for its arguments."""
  seeds, smoke = 0, False
  for part in filter(None, arg.split(',')):
    name, _, value = part.partition('=')
    if part == 'smoke':
      smoke = True
    elif name == 'seeds' and value.isdigit() and int(value):
      seeds = int(value)
    else:
      raise ValueError(
        f'argument {part!r} of sweep scaling_law is unknown; use smoke or '
        'seeds=N, separated by commas'
      )
  widths = (16, 32) if smoke else _WIDTHS
  budgets = (6, 0) if smoke else _BUDGETS
  run, draw = (_SMOKE_RUN, _SMOKE_DRAW) if smoke else (_RUN, _DRAW)
  seeds = seeds or (1 if smoke else 2)
  models = grid.product(
    grid.values('seed', range(seeds)), grid.values('width', widths)
  )
  c = ml_collections.ConfigDict()
  c.name = 'scaling_law_smoke' if smoke else 'scaling_law'
  c.kind = 'scaling_law'  # the page that is written at the end
  c.page = 'docs/scaling_law.md'
  if smoke:
    c.page = 'runs/sweeps/scaling_law_smoke/scaling_law.md'
  c.options = dict(
    strategy='best_of_k',  # whose law it is
    targets=(0.5, 0.8, 0.9, 0.95),  # accuracies whose compute is predicted
  )
  trained = [_train_point(run, **model) for model in models]
  drawn = [
    _sample_point(draw, **point)
    for point in grid.product(models, grid.values('budget', budgets))
  ]
  c.points = tuple(trained + drawn)
  return c


def _name(kind: str, width: int, seed: int) -> str:
  return f'{kind}-w{width}-s{seed}'


def _train_point(run, width: int, seed: int) -> dict:
  return dict(
    name=_name('train', width, seed),
    kind='train',
    needs=(),
    recipe='configs/tiny.py',
    width=width,
    seed=seed,
    changes={
      **run,
      'seed': seed,
      'model.width': width,
      'model.head_width': width // 4,
      'model.feed_forward': width * 8 // 3,
    },
  )


def _sample_point(draw, width: int, seed: int, budget: int) -> dict:
  train = _name('train', width, seed)
  return dict(
    name=f'{_name("sample", width, seed)}-b{budget}',
    kind='sample',
    needs=(train,),
    train=train,
    width=width,
    seed=seed,
    budget=budget,
    **draw,
  )
