"""All that touches orbax: arrays by path and a JSON object, in and out.

One orbax `CheckpointManager` (the stable API) with a Composite of `state` (a
nested dict of arrays) and `extra` (JSON). Which steps exist, are whole and are
kept is decided by `manager.py`; orbax removes nothing here.
"""

import logging as py_logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from metastone_jax.checkpoints import trees
from metastone_jax.errors import UserError

# Part of the name of directories that a killed save leaves on local disks.
TEMPORARY = '.orbax-checkpoint-tmp'


def _quiet_orbax(record: py_logging.LogRecord) -> bool:
  """Log filter: keeps everything but orbax's own chatter below WARNING.

  That a reader opens a folder read-only is no warning either. What its threads
  log with a traceback they raise as well: `finish_write` reports it, once.
  """
  if '/orbax/' not in record.pathname.replace('\\', '/'):
    return True
  if record.exc_info:
    return False
  text = str(record.msg)
  read_only = 'read_only=True' in text or 'is read only' in text
  return record.levelno >= py_logging.WARNING and not read_only


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
  """Tells orbax what a leaf of the abstract state shall become."""
  if not isinstance(leaf, jax.ShapeDtypeStruct | jax.Array):
    return ocp.RestoreArgs(restore_type=np.ndarray)
  sharding = leaf.sharding
  if sharding is None:
    if jax.process_count() > 1:
      raise ValueError('with several processes every leaf needs a sharding')
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return ocp.ArrayRestoreArgs(
    sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype
  )


class OrbaxIO:
  """Reads and writes the contents of steps below `root`.

  Args:
    root: Existing absolute directory.
    read_only: Refuse to write.
  """

  def __init__(self, root: epath.Path, *, read_only: bool):
    logging.get_absl_logger().addFilter(_quiet_orbax)  # Adding twice is once.
    self._orbax = ocp.CheckpointManager(
      root,
      options=ocp.CheckpointManagerOptions(
        # Keep all: orbax would remove old steps before our record is written.
        max_to_keep=None,
        create=False,
        read_only=read_only,
        save_root_metadata=False,
        lightweight_initialize=True,
      ),
      item_handlers={
        # Weights hardly compress, and trying costs most of a save's time.
        'state': ocp.PyTreeCheckpointHandler(use_compression=False),
        'extra': ocp.JsonCheckpointHandler(),
      },
    )

  def start_write(
    self, step: int, leaves: Mapping[str, Any], extra: Mapping[str, Any]
  ) -> None:
    """Copies the arrays to the host and starts writing them to `step`.

    Args:
      step: A step that does not exist.
      leaves: Arrays by path.
      extra: JSON object.
    """
    # Steps come and go without orbax knowing.
    self._orbax.reload()
    # Orbax refuses arrays without elements (a stack of no layers); the shape
    # in the record is all there is to know of them.
    stored = {name: leaf for name, leaf in leaves.items() if leaf.size}
    self._orbax.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(trees.nest(stored)),
        extra=ocp.args.JsonSave(extra),
      ),
      force=True,
    )

  def finish_write(self, name: str) -> None:
    """Waits until the step is committed.

    Args:
      name: of the checkpoint, for the message.

    Raises:
      UserError: it could not be written.
    """
    try:
      self._orbax.wait_until_finished()
      self._orbax.check_for_errors()
    except (OSError, ValueError) as error:  # ValueError: tensorstore's
      # The reason stands last, after the names of arrays and files.
      text = ' '.join(str(error).split()).split(' [source locations')[0]
      raise UserError(
        f'{name} could not be written: {text[:90]} ... {text[-200:]}; the '
        'earlier checkpoints stand: free space, or write elsewhere'
      ) from error

  def read_extra(self, step: int) -> dict[str, Any]:
    """Returns the JSON object of `step`."""
    return self._orbax.restore(
      step, args=ocp.args.Composite(extra=ocp.args.JsonRestore())
    )['extra']

  def read_arrays(
    self, step: int, wanted: Mapping[str, Any], *, partial: bool
  ) -> dict[str, Any]:
    """Reads arrays of `step` by path.

    Args:
      step: Which step.
      wanted: Paths that exist, each with what its array shall become: a
        `jax.ShapeDtypeStruct` or jax array (its sharding), else numpy.
      partial: Whether the step has other arrays too.

    Returns:
      The arrays by path. Those without elements are made here.
    """
    args = {name: _restore_args(leaf) for name, leaf in wanted.items()}
    items = {name: trees.abstract(leaf) for name, leaf in wanted.items()}
    filled = [name for name, item in items.items() if item.size]
    arrays = {}
    if filled:
      tree = self._orbax.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.PyTreeRestore(
            item=trees.nest({name: items[name] for name in filled}),
            restore_args=trees.nest({name: args[name] for name in filled}),
            partial_restore=partial,
          )
        ),
      )['state']
      arrays, _ = trees.flatten(tree)
    for name, item in items.items():
      if not item.size:
        arrays[name] = np.zeros(item.shape, item.dtype)
        if isinstance(args[name], ocp.ArrayRestoreArgs):
          empty = arrays[name]
          arrays[name] = jax.make_array_from_callback(
            empty.shape, args[name].sharding, lambda i, empty=empty: empty[i]
          )
    return arrays

  def close(self) -> None:
    """Releases orbax's threads."""
    self._orbax.close()
