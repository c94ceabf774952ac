"""Points of a sweep: what is refused, their order, what a folder keeps."""

import pytest
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import plan as plan_lib


def _point(name='a', needs=(), **more):
  return dict(name=name, kind='k', needs=needs, **more)


def test_needs_come_first_and_the_rest_as_given():
  plan = plan_lib.Plan.of(
    [_point('z', ('b',)), _point('b', ('c',)), _point('a'), _point('c')]
  )
  assert list(plan.points) == ['c', 'b', 'z', 'a']


def test_points_are_what_a_file_would_give_back():
  plan = plan_lib.Plan.of([dict(name='a', kind='k', ks=(1, 2), deep={3: None})])
  assert plan.points['a'] == {
    'name': 'a',
    'kind': 'k',
    'needs': [],
    'ks': [1, 2],
    'deep': {'3': None},
  }


@pytest.mark.parametrize(
  'points, message',
  [
    ([], 'no points'),
    ([{'kind': 'k'}], 'point 0 of the sweep: name=None'),
    ([_point('a'), _point('A')], "point 1 of the sweep: name='A'"),
    ([_point('../a')], 'name='),
    ([_point('.a')], 'name='),
    ([_point('a/b')], 'name='),
    ([_point('a\n')], 'name='),
    ([_point('')], 'name='),
    ([_point('x' * 129)], 'name='),
    ([{'name': 'a'}], 'point a of the sweep: kind=None must be'),
    ([{'name': 'a', 'kind': 3}], 'point a of the sweep: kind=3 must be'),
    ([_point('a'), 'b'], "point 1 of the sweep: 'b' must be a dict"),
    ({'a': _point('a')}, 'points of the sweep: dict, must be a list'),
    ([_point('a', (['b'],))], 'needs must be a list of names'),
    ([_point('a'), _point('a')], 'two points of the sweep have the name a'),
    ([_point('a', ('b',))], 'point a needs b, which is no point'),
    ([_point('a', 'b'), _point('b')], 'needs must be a list'),
    ([_point('a', ('a',))], 'need each other: a -> a'),
    (
      [
        _point('x', ('b',)),
        _point('b', ('c',)),
        _point('c', ('d',)),
        _point('d', ('b',)),
      ],
      'need each other: b -> c -> d -> b',
    ),
    ([_point('a', value={1, 2})], 'point a of the sweep has a value'),
    ([_point('a', value=float('nan'))], 'point a of the sweep has a value'),
  ],
)
def test_refusals(points, message):
  with pytest.raises(UserError, match=message) as error:
    plan_lib.Plan.of(points)
  assert '\n' not in str(error.value)


def test_a_folder_takes_further_points_and_no_changed_ones(tmp_path):
  workdir = epath.Path(tmp_path)
  with pytest.raises(UserError, match='no points of a sweep'):
    plan_lib.kept(workdir)
  first = plan_lib.Plan.of([_point('b', ('z',), size=1), _point('z')])
  plan_lib.keep(first, workdir)
  plan_lib.keep(first, workdir)
  plan_lib.keep(plan_lib.Plan.of([_point('z'), _point('a', ks=(1,))]), workdir)
  # All of them, whichever config they came from, needs first.
  everything = plan_lib.kept(workdir)
  assert list(everything.points) == ['a', 'z', 'b']
  assert everything.points['b'] == first.points['b']

  changed = plan_lib.Plan.of([_point('new'), _point('z'), _point('b', size=2)])
  with pytest.raises(UserError) as error:
    plan_lib.keep(changed, workdir)
  message = str(error.value)
  assert 'point b ' in message and 'needs, size' in message
  assert '\n' not in message
  assert not plan_lib.point_folder(workdir, 'new').exists()
