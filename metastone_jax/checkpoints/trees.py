"""State pytrees as nested dicts of named arrays, and the check that they fit.

A checkpoint holds a plain nested dict of arrays with string keys, whatever
containers (dicts, lists, optax's named tuples) the state is made of: each leaf
is named by its path, such as `optimiser/backbone/0/mu/blocks/q/kernel`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from metastone_jax.errors import UserError

PyTree = Any


def _key_name(entry: Any) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(entry, attribute):
      return str(getattr(entry, attribute))
  raise ValueError(f'unknown pytree path entry {entry!r}')


def flatten(tree: PyTree) -> tuple[dict[str, Any], Any]:
  """Returns the leaves by path ('a/b/c') in tree order, and the treedef.

  Raises:
    ValueError: If two leaves have the same path.
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  named = {}
  for path, leaf in leaves:
    name = '/'.join(_key_name(entry) for entry in path)
    if name in named:
      raise ValueError(f'two leaves of the state are called {name!r}')
    named[name] = leaf
  return named, treedef


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Turns {'a/b': leaf} into {'a': {'b': leaf}}."""
  tree: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *folders, last = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = leaf
  return tree


def storable(leaf: Any) -> jax.Array | np.ndarray:
  """Returns a leaf as orbax stores it: Python and numpy scalars as 0-d arrays.

  Raises:
    ValueError: If the leaf is no array or number (a string, a typed PRNG key).
  """
  if isinstance(leaf, jax.Array):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
      raise ValueError(
        f'{leaf.dtype} cannot be saved: save jax.random.key_data(key)'
      )
    return leaf
  array = np.asarray(leaf)
  if array.dtype.kind in 'OSUM':
    raise ValueError(f'{type(leaf).__name__} is no array or number: {leaf!r}')
  return array


def abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  """Returns shape and dtype of an array, abstract array or number."""
  if not hasattr(leaf, 'dtype'):
    leaf = np.asarray(leaf)
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def describe(leaf: Any) -> dict[str, Any]:
  """Returns {'shape': [...], 'dtype': name} of an array or abstract array."""
  leaf = abstract(leaf)
  return {'shape': list(leaf.shape), 'dtype': np.dtype(leaf.dtype).name}


def _config_clues(
  saved_shape: list[int], wanted_shape: list[int], extra: Mapping[str, Any]
) -> str:
  """Names the saved config's entries that equal a differing dimension."""
  dims = [
    saved
    for saved, wanted in zip(saved_shape, wanted_shape, strict=False)
    if saved != wanted
  ]
  clues = []

  def visit(node: Any, prefix: str) -> None:
    if isinstance(node, Mapping):
      for key, child in node.items():
        visit(child, f'{prefix}.{key}' if prefix else str(key))
    elif type(node) is int and node in dims:
      clues.append(f'{prefix} {node}')

  visit(extra.get('config'), '')
  if not clues:
    return 'the checkpoint was written with another config'
  # A model's own entries are the likelier cause than, say, a batch size.
  clues.sort(key=lambda clue: 'model' not in clue)
  return f'the checkpoint was written by a model with {", ".join(clues[:2])}'


def check_fits(
  saved: Mapping[str, Mapping[str, Any]],
  wanted: Mapping[str, Any],
  *,
  where: str,
  hint: str,
  extra: Mapping[str, Any],
  partial: bool = False,
) -> None:
  """Checks the arrays of a checkpoint against those a program wants.

  Args:
    saved: `describe` of each saved array, by path.
    wanted: Arrays or abstract arrays, by path.
    where: The checkpoint, for the message.
    hint: What to do about it, for the message.
    extra: The checkpoint's JSON item; its 'config' explains shapes.
    partial: If true, saved arrays that are not wanted are fine.

  Raises:
    UserError: Naming the first parameter that differs, with both shapes.
  """
  for name, leaf in wanted.items():
    if name not in saved:
      raise UserError(
        f'{where} has no parameter {name}, which this config needs: the '
        f'checkpoint was written with another config; {hint}'
      )
    old, new = saved[name], describe(leaf)
    if old['shape'] != new['shape']:
      raise UserError(
        f'{where} does not fit: parameter {name} has shape '
        f'{tuple(old["shape"])} there and {tuple(new["shape"])} here: '
        f'{_config_clues(old["shape"], new["shape"], extra)}; {hint}'
      )
    if old['dtype'] != new['dtype']:
      raise UserError(
        f'{where} does not fit: parameter {name} is {old["dtype"]} there and '
        f'{new["dtype"]} here: the checkpoint was written with another '
        f'config; {hint}'
      )
  unknown = [name for name in saved if name not in wanted]
  if unknown and not partial:
    raise UserError(
      f'{where} has a parameter {unknown[0]} that this config does not use: '
      f'the checkpoint was written with another config; {hint}'
    )


def as_asked(array: Any, leaf: Any) -> Any:
  """Returns a Python number where the abstract state has one."""
  return array if hasattr(leaf, 'dtype') else type(leaf)(array.item())
