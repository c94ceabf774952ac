r"""The paper's claims, and what it never ran, on models that a CPU can train.

  python -m launch.sweep --config=configs/sweeps/claims.py --workers=2
  python -m launch.sweep --config=configs/sweeps/claims.py:smollm2

The first trains one policy a seed (`configs/tiny.py`, warmed up on
demonstrations), draws samples, and fits and judges 23 arms on them, five seeds
in little more than an hour on 2 cores; the second does 8 arms on
SmolLM2-135M-Instruct, in an afternoon. Both share runs/sweeps/claims and write
docs/claims.md, which shows whatever of both is done (--finish: without doing
more). What an arm is: metastone_jax/scaling/claims_list.py.

Arguments, separated by commas: `smollm2` (that set instead of the tiny one),
`seeds=N` (5 tiny, 1 SmolLM2; more may be added later to the same folder),
`large` (of smollm2, for an accelerator: 10 arms, six times the samples to fit
on, four times to judge; other values of the same points, so it wants a
--workdir without them), `smoke` (a folder of its own, under ten minutes: to see
all of it work).
"""

import ml_collections

from metastone_jax import grid

_COMMAND = 'python -m launch.sweep --config=configs/sweeps/claims.py'
_SEEDS = {'tiny': 5, 'smollm2': 1}


def _head(arm: str, loss: str, scale: float, **more) -> dict:
  """An arm with a score head on the policy's own backbone."""
  return dict(arm=arm, judge='head', loss=loss, gradient_scale=scale, **more)


_SHARED = (
  _head('scale-1e-4', 'bce', 1e-4),
  _head('frozen', 'bce', 0.0),
  _head('frozen-short', 'bce', 0.0, longer=1),
  _head('frozen-spr', 'spr', 0.0),
  # The same copy of the backbone, fitted whole, beside the policy.
  dict(arm='prm', judge='prm', loss='bce', gradient_scale=1.0),
  dict(arm='self-certainty', judge='self-certainty'),
  dict(arm='log-prob', judge='log-prob'),
)
# What moves the backbone of scale-1e-4 but for its score gradient.
_LM_ONLY = _head('lm-only', 'bce', 0.0, lm_alone=True)
_ARMS = {
  'tiny': (
    # Kept fits draw samples of their own; a later policy starts from `full`.
    _head('full', 'bce', 1.0, keep=True),
    _LM_ONLY | dict(keep=True),
    *_SHARED,
    _head('full-spr', 'spr', 1.0),
    _head('full-soft', 'soft', 1.0),
    _head('frozen-soft', 'soft', 0.0),
    _head('layer-1', 'bce', 1.0, feature_layer=1),
    _head('layer-2', 'bce', 1.0, feature_layer=2),
    _head('position-at', 'bce', 1.0, position='at'),
    # A trace of `signs` is right if its last step leaves 0, if it is honest.
    dict(arm='written', judge='written', text=' 0'),
    _head('width-half', 'bce', 1.0, width=48),
    _head('width-4x', 'bce', 1.0, width=768),
    _head('outcome', 'bce', 1.0, position='end'),
  ),
  'smollm2': (_head('full', 'bce', 1.0), *_SHARED),
}
# Of smollm2 with large or smoke: on two cores each takes half an hour and more.
_LARGE_ARMS = (_LM_ONLY, _head('outcome', 'bce', 1e-4, position='end'))
# Arm -> the kept fit of this set's whose own samples its head judges.
_OWN = {'own': 'full', 'own-lm-only': 'lm-only'}
# Evaluations inside a run are not what this sweep is for.
_QUIET = {
  'phases.warmup.evaluate_every': 0,
  'evaluation.problems': 32,
  'evaluation.stage_samples': 4,
  'evaluation.final_samples': 4,
  'evaluation.ks': (1, 2),
}
_BASE = {
  'tiny': dict(
    recipe='configs/tiny.py',
    changes={**_QUIET, 'phase_order': ('warmup',)},
  ),
  'smollm2': dict(
    recipe='configs/smollm2_135m.py',
    changes={**_QUIET, 'phase_order': ('warmup',)},
  ),
}
# The policy of the arm `full` moves on by rewards, without its head.
_LATER = dict(
  recipe='configs/tiny.py',
  changes={
    **_QUIET,
    'phase_order': ('joint',),
    'phases.joint.evaluate_every': 0,
    'phases.joint.steps': 20,
    'phases.joint.score_coefficient': 0.0,
  },
)
_MATERIAL = {
  'tiny': dict(
    task='signs',
    train_problems=512,  # whose samples heads are fitted on
    train_samples=8,  # of each
    problems=512,  # held out, the same for every seed
    samples=16,  # of each: at k = 8 every sample is in half of all subsets
  ),
  'smollm2': dict(
    task='chain_sum',
    train_problems=128,
    train_samples=8,
    problems=256,
    samples=8,
  ),
}
_LARGE_MATERIAL = dict(train_problems=768, problems=512, samples=16)
_FIT = {
  'tiny': dict(
    # Over the samples. Four times as many updates take `full` to the oracle,
    # where no two arms can be told apart.
    epochs=1,
    rows_per_update=64,
    head_learning_rate=1e-3,
    backbone_learning_rate=1e-3,
    lm_coefficient=1.0,  # on the policy's own samples: it shall stay itself
  ),
  'smollm2': dict(
    epochs=2,
    rows_per_update=16,
    head_learning_rate=1e-4,
    backbone_learning_rate=1e-5,
    lm_coefficient=1.0,
  ),
}
_LARGE_FIT = dict(epochs=3, rows_per_update=32, backbone_learning_rate=3e-5)
_SMOKE_MATERIAL = dict(
  train_problems=8, train_samples=4, problems=16, samples=8
)
_SMOKE_FIT = dict(epochs=1, rows_per_update=16)
_SIZES = {
  '': ({}, {}),
  'large': (_LARGE_MATERIAL, _LARGE_FIT),
  'smoke': (_SMOKE_MATERIAL, _SMOKE_FIT),
}
_SMOKE_BASE = {
  'tiny': {
    'data.tasks': {'signs': 1.0},
    'data.task_options': {'signs': {'min_terms': 1, 'max_terms': 2}},
    'data.num_demonstrations': 1024,
    'phases.warmup.steps': 150,
    'phases.warmup.backbone_learning_rate': 1e-2,
    'phases.joint.steps': 1,
  },
  'smollm2': {'phases.warmup.steps': 2},
}


def get_config(arg: str = ''):
  """The sweep; see the module docstring for its arguments."""
  name, seeds, size = 'tiny', None, ''
  for part in filter(None, arg.split(',')):
    key, _, value = part.partition('=')
    if part == 'smollm2':
      name = part
    elif part in ('smoke', 'large'):
      size = part
    elif key == 'seeds' and value.isdigit() and int(value):
      seeds = int(value)
    else:
      raise ValueError(
        f'argument {part!r} of sweep claims is unknown; use smollm2, seeds=N, '
        'large or smoke, separated by commas'
      )
  if size == 'large' and name == 'tiny':
    raise ValueError('large is a size of smollm2: use smollm2,large')
  c = ml_collections.ConfigDict()
  c.name = 'claims_smoke' if size == 'smoke' else 'claims'
  c.kind = 'claims'  # the page that is written at the end
  c.page = 'docs/claims.md'
  if size == 'smoke':
    c.page = 'runs/sweeps/claims_smoke/claims.md'
  c.options = dict(
    k=8,  # samples an answer
    commands=dict(
      tiny=_COMMAND,
      smollm2=f'{_COMMAND}:smollm2{",large" if size == "large" else ""}',
    ),
  )
  seeds = seeds or (1 if size == 'smoke' else _SEEDS[name])
  c.points = tuple(
    point for seed in range(seeds) for point in _points(name, seed, size)
  )
  return c


def _points(name: str, seed: int, size: str) -> grid.Grid:
  """All points of a set and seed."""
  base = _base_point(name, 'base', seed, size, **_BASE[name])
  material = _material_point(name, 'material', base, size)
  given = _ARMS[name] + (_LARGE_ARMS if name == 'smollm2' and size else ())
  arms = [_arm_point(name, material, size, **arm) for arm in given]
  if name == 'smollm2':
    return grid.chain([base, material], arms)
  names = {arm['arm']: arm['name'] for arm in arms}
  first = names['full']
  later = _base_point(name, 'later-base', seed, size, start=first, **_LATER)
  later_material = _material_point(name, 'later-material', later, size)
  moved = [
    # Both on the features that the later policy has.
    _arm_point(name, later_material, size, **_head('later', 'bce', 0.0)),
    _arm_point(
      name,
      later_material,
      size,
      **_head('transfer', 'bce', 0.0),
      head_of=first,
    ),
  ]
  own_materials = [
    _material_point(name, f'{own}-material', base, size, names[arm])
    for own, arm in _OWN.items()
  ]
  owns = [
    _arm_point(name, drawn, size, **_head(own, 'bce', 0.0), head_of=names[arm])
    for drawn, (own, arm) in zip(own_materials, _OWN.items(), strict=True)
  ]
  return grid.chain(
    [base, material],
    arms,
    [later, later_material],
    moved,
    own_materials,
    owns,
  )


def _base_point(
  name: str, what: str, seed: int, size: str, *, recipe, changes, start=''
) -> dict:
  changes = {**changes, 'seed': seed}
  if size == 'smoke':
    changes |= _SMOKE_BASE[name]
  return dict(
    name=f'{name}-{what}-s{seed}',
    kind='base',
    needs=(start,) if start else (),
    set=name,
    seed=seed,
    recipe=recipe,
    changes=changes,
    start=start,
  )


def _material_point(
  name: str, what: str, base: dict, size: str, policy: str = ''
) -> dict:
  sizes = _MATERIAL[name] | _SIZES[size][0]
  return dict(
    name=f'{name}-{what}-s{base["seed"]}',
    kind='material',
    needs=(base['name'], policy) if policy else (base['name'],),
    set=name,
    seed=base['seed'],
    base=base['name'],
    **sizes,
    **(dict(policy=policy) if policy else {}),
  )


def _arm_point(
  name: str, material: dict, size: str, *, head_of: str = '', **arm
) -> dict:
  needs = (material['name'], head_of) if head_of else (material['name'],)
  fit = _FIT[name] | _SIZES[size][1]
  frozen = arm.get('gradient_scale') == 0 and not arm.get('lm_alone')
  # A head alone costs seconds.
  fit['epochs'] *= arm.pop('longer', 8 if frozen else 1)
  return dict(
    name=f'{name}-{arm["arm"]}-s{material["seed"]}',
    kind='arm',
    needs=needs,
    set=name,
    seed=material['seed'],
    material=material['name'],
    head_of=head_of,
    **arm,
    **fit,
  )
