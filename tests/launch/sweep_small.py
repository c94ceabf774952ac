"""A sweep of the tests: cheap points, in layers that need each other.

Arguments, separated by commas: `wide` (more points, slower), `bad` (one point
fails, one needs it), `dies` (a process dies in a point), `more` (a further
point), `changed` (another value), `odd` (an unknown kind), `text` (a point that
is no dict), `number` (a kind that is no text).
"""

import ml_collections

_CHEAP = 'tests.scaling.runs.cheap'


def get_config(arg: str = ''):
  parts = set(filter(None, arg.split(',')))
  c = ml_collections.ConfigDict()
  c.name = 'small_sweep'
  c.kind = f'{_CHEAP}:page'
  c.page = 'page.md'
  c.options = dict(a=1)
  layers, width = (4, 6) if 'wide' in parts else (2, 2)
  sleep = 0.1 if 'wide' in parts else 0.0
  points = []
  for layer in range(layers):
    for i in range(width):
      needs = (f'p{layer - 1}-{i}', f'p{layer - 1}-0') if layer else ()
      pieces = 4 + 2 * i + ('changed' in parts and layer == i == 1)
      points.append(_add(f'p{layer}-{i}', needs, pieces, sleep))
  if 'more' in parts:
    points.append(_add('more', ('p1-1',), 1, 0.0))
  if 'bad' in parts:
    points.append(dict(name='bad', kind=f'{_CHEAP}:refuse'))
    points.append(_add('after-bad', ('bad',), 1, 0.0))
  if 'dies' in parts:
    points.insert(0, dict(name='dies', kind=f'{_CHEAP}:die_once'))
  if 'odd' in parts:
    points.append(dict(name='odd', kind='trian'))
  if 'text' in parts:
    points.append('p4')
  if 'number' in parts:
    points.append(dict(name='number', kind=3))
  c.points = tuple(points)
  return c


def _add(name, needs, pieces, sleep):
  return dict(
    name=name,
    kind=f'{_CHEAP}:add',
    needs=needs,
    pieces=pieces,
    sleep=sleep,
  )
