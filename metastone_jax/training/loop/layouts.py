"""Layouts: what of a recipe depends on the machine, by the machine's name.

A config file may hold `layouts`, a table machine -> values, and `layout` picks
one:

  c.layouts = {'v5p-128': dict(
    mesh=dict(fsdp=16, tensor=4),
    phases=dict(joint=dict(sequences_per_microbatch=16)))}

What is learned does not depend on it (up to rounding): batch sizes of an
update, lengths and rates belong to the recipe.
"""

from collections.abc import Mapping
from typing import Any

from metastone_jax.errors import UserError

# Replaced as a whole: an axis that a layout does not name is 1.
_WHOLE = ('mesh', 'rollout_mesh')


def apply_layout(
  config: Mapping[str, Any], name: str | None = None
) -> dict[str, Any]:
  """The config with a layout's values in place, and both keys gone.

  Args:
    config: nested dict of a config file.
    name: of the layout; None = the config's own `layout` ('' = none). A name
      given here that is not in the table changes nothing.

  Raises:
    UserError: `layout` names none of the table, or sets an unknown key.
  """
  config = dict(config)
  table = dict(config.pop('layouts', {}))
  own = config.pop('layout', '')
  if name is None and own and own not in table:
    raise UserError(
      f'layout={own!r} is not in this recipe; it has '
      f'{", ".join(table) or "none"}; for another machine set mesh, '
      'rollout_mesh and the sizes yourself'
    )
  chosen = own if name is None else name
  return _merged(config, table.get(chosen, {}), f'layouts.{chosen}')


def _merged(tree: Mapping, changes: Mapping, where: str) -> dict[str, Any]:
  tree = dict(tree)
  for key, value in changes.items():
    here = f'{where}.{key}'
    if key not in tree:
      raise UserError(f'{here} is unknown: the recipe has no such key')
    if isinstance(value, Mapping) and key not in _WHOLE:
      if not isinstance(tree[key], Mapping):
        raise UserError(f'{here} is a table, and one value in the recipe')
      value = _merged(tree[key], value, here)
    tree[key] = value
  return tree
