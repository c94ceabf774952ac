"""Checkpoints that are whole or refused: orbax plus integrity records.

Contract:
- A checkpoint is a state pytree of arrays and a JSON object ("extra": data
  position, config, versions, phase, rows of metrics, ...) under a step number.
- Layout: `<root>/<step>/{state,extra}/` as orbax writes it, and
  `<root>/integrity/<step>.json`, the completion marker with size and SHA-256
  of every file (see `integrity.py`). A step without a complete record does not
  count.
- Killing the process at any moment leaves the previous or the new checkpoint
  restorable: an old step is removed only after the new one is complete.
- Nothing damaged is ever restored: every file is verified first, and a
  damaged step is a UserError that names it, the file and the last good step.
- One step number is one state. Saving a step again replaces it; saving a step
  removes those with larger numbers, which belong to an abandoned continuation.
- With several processes every method is called by all of them, over a shared
  directory; process 0 alone writes records and removes steps, and decides what
  depends on the state of the disk. Files are hashed and verified by all, each
  its share. Waits have limits, and their errors name the hosts that are late.

Round trips are bit-equal for every dtype, whatever the sharding.
"""

import json
import shutil
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Self

import jax
import numpy as np
from absl import logging
from etils import epath

from metastone_jax.checkpoints import integrity, orbax_io, trees
from metastone_jax.errors import UserError
from metastone_jax.parallel import distributed
from metastone_jax.telemetry import files as files_lib

PyTree = Any


class CheckpointManager:
  """Saves and restores checkpoints below one directory; a context manager.

  Opening for writing removes what killed saves have left.

  Args:
    directory: Root of the checkpoints; local or `gs://`.
    max_to_keep: Newest checkpoints to keep; None keeps all.
    keep_steps: Steps that are kept beyond that.
    read_only: Only look; touch nothing (another process may be writing).
    config_path: Config file named in "does not fit" messages; by default
      `config.json` beside the directory.

  Raises:
    UserError: If `read_only` and the directory does not exist, or
      `max_to_keep` < 1.
  """

  def __init__(
    self,
    directory: epath.PathLike,
    *,
    max_to_keep: int | None = 3,
    keep_steps: Iterable[int] = (),
    read_only: bool = False,
    config_path: epath.PathLike | None = None,
  ):
    if max_to_keep is not None and max_to_keep < 1:
      raise UserError(f'max_to_keep must be 1 or more, got {max_to_keep}')
    root = epath.Path(directory)
    if not files_lib.is_remote(root):
      root = root.expanduser().resolve()  # orbax demands absolute paths.
    self._root = root
    self._config_path = config_path or root.parent / 'config.json'
    self._max_to_keep = max_to_keep
    self._keep_steps = frozenset(keep_steps)
    self._read_only = read_only
    self._records = integrity.Records(root)
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    # (step, extra) that this object has saved last: see save().
    self._last_saved: tuple[int, Any] | None = None
    if read_only and not root.exists():
      raise UserError(f'there is no checkpoint directory {root}')

    self._primary = distributed.is_primary()
    if not read_only and self._primary:
      root.mkdir(parents=True, exist_ok=True)
      self._clean_up()
    distributed.barrier('checkpoints open')
    if self._primary:
      self._warn_of_unrecorded()
    self._io = orbax_io.OrbaxIO(root, read_only=read_only)

  @property
  def directory(self) -> epath.Path:
    """The root, absolute."""
    return self._root

  def step_dir(self, step: int) -> epath.Path:
    """Returns the directory of `step`."""
    return self._root / str(step)

  # Looking.

  def latest_step(self) -> int | None:
    """Returns the newest complete step (its files not verified), or None."""
    steps = self._complete_steps()
    return steps[-1] if steps else None

  def good_steps(self) -> list[int]:
    """Returns the complete steps whose every file verifies; reads them all."""
    return [step for step in self._complete_steps() if not self._damage(step)]

  def read_extra(
    self,
    step: int | None = None,
    *,
    fallback: bool = False,
    verified: bool = False,
  ) -> tuple[dict[str, Any], int]:
    """Returns (extra, step) without reading arrays; arguments as restore()."""
    if not verified:
      step = self._choose(step, fallback)
    return self._io.read_extra(step), step

  def verified_step(self, step: int | None = None) -> int:
    """Returns `step` (the newest by default) after verifying its files.

    Raises:
      UserError: As restore().
    """
    return self._choose(step, False)

  def arrays(self, step: int) -> dict[str, dict[str, Any]]:
    """Returns {'shape': [...], 'dtype': name} of each array by its path."""
    return self._records.read(step)['arrays']

  # Saving.

  def save(
    self,
    step: int,
    state: PyTree,
    extra: Mapping[str, Any],
    *,
    wait: bool = True,
  ) -> None:
    """Saves a checkpoint and removes those that are not kept any more.

    Args:
      step: Its number, 0 or more; also its directory's name.
      state: Pytree of jax arrays (sharded or not), numpy arrays and numbers.
      extra: JSON-able object; tuples become lists, keys strings.
      wait: If true the checkpoint is complete on return. If false the arrays
        have been copied (the caller may donate them) and a thread finishes;
        the next save(), wait() or close() waits for it and raises its error.

    Raises:
      ValueError: If a leaf or `extra` cannot be stored, before any write.
    """
    if self._read_only:
      raise RuntimeError(f'{self._root} was opened read-only')
    if step < 0:
      raise ValueError(f'step must be 0 or more, got {step}')
    self.wait()
    extra = json.loads(
      json.dumps(files_lib.to_jsonable(extra, finite=False), allow_nan=True)
    )
    leaves, _ = trees.flatten(state)
    leaves = {name: trees.storable(leaf) for name, leaf in leaves.items()}
    if not any(leaf.size for leaf in leaves.values()):
      raise ValueError('the state has no arrays')
    # The stop after a periodic save asks for the same step once more. Saving
    # it would have to remove the finished one first. Compared as text: NaN is
    # not equal to itself.
    fingerprint = (step, json.dumps(extra, sort_keys=True))
    again = fingerprint == self._last_saved and self.latest_step() == step
    if distributed.from_primary('checkpoint saved already', again):
      logging.info('step %d is already saved in %s', step, self._root)
      return
    self._last_saved = None

    problem = self._primary and self._space_problem(step, leaves)
    if problem := distributed.from_primary('checkpoint space', problem):
      raise UserError(problem)
    if self._primary:
      self._records.mark(step, 'saving')
      if self.step_dir(step).exists():
        logging.warning('replacing the checkpoint %s', self.step_dir(step))
        self.step_dir(step).rmtree()
    distributed.barrier(f'checkpoint {step} begins')
    self._io.start_write(step, leaves, extra)
    arrays = {name: trees.describe(leaf) for name, leaf in leaves.items()}
    self._last_saved = fingerprint
    if wait:
      self._finish(step, arrays)
      return

    def finish() -> None:
      try:
        self._finish(step, arrays)
      except BaseException as error:  # noqa: BLE001  Raised again in wait().
        self._error = error

    self._thread = threading.Thread(target=finish, name=f'checkpoint-{step}')
    self._thread.start()

  def wait(self) -> None:
    """Waits for a save with wait=False; raises the error it had, if any."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
      error, self._error = self._error, None
      if error is not None:
        self._last_saved = None
        raise error

  def close(self) -> None:
    """Waits for a running save and releases orbax's threads."""
    try:
      self.wait()
    finally:
      self._io.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc) -> None:
    self.close()

  # Restoring.

  def restore(
    self,
    step: int | None = None,
    abstract_state: PyTree | None = None,
    *,
    partial: bool = False,
    fallback: bool = False,
    verified: bool = False,
  ) -> tuple[PyTree, dict[str, Any], int]:
    """Verifies and reads a checkpoint.

    Args:
      step: Which one; the newest by default.
      abstract_state: Pytree of what is wanted. A `jax.ShapeDtypeStruct` (its
        sharding; the first device without one) or jax array asks for a jax
        array, a numpy array for one, a Python number for one. None reads the
        whole state as nested dicts of numpy arrays.
      partial: If true, saved arrays that are not in `abstract_state` are left
        out (the parameters without the optimiser's state).
      fallback: If true and `step` is None, damaged checkpoints are passed over
        with a warning.
      verified: If true, `step` comes from `verified_step` and its files are
        not read a second time for their digests.

    Returns:
      (state in the structure of `abstract_state`, extra, step).

    Raises:
      UserError: If there is no such checkpoint, it is incomplete or damaged
        (names the file and the last good step), or it does not fit (names the
        first parameter that differs).
    """
    if not verified:
      step = self._choose(step, fallback)
    extra = self._io.read_extra(step)
    saved = self._records.read(step)['arrays']
    if abstract_state is None:
      wanted = {
        # Shape and dtype only: a broadcast scalar takes no memory.
        name: np.broadcast_to(np.zeros((), info['dtype']), info['shape'])
        for name, info in saved.items()
      }
      treedef = None
    else:
      wanted, treedef = trees.flatten(abstract_state)
      trees.check_fits(
        saved,
        wanted,
        where=self._name(step),
        hint=f'use the config it was saved with: {self._config_path}',
        extra=extra,
        partial=partial,
      )
    read = self._io.read_arrays(step, wanted, partial=partial)
    if treedef is None:
      return trees.nest(read), extra, step
    leaves = [trees.as_asked(read[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(treedef, leaves), extra, step

  # Below: private.

  def _name(self, step: int) -> str:
    return f'checkpoint step {step} ({self.step_dir(step)})'

  def _space_problem(self, step: int, leaves: Mapping[str, Any]) -> str | None:
    """Says of what cannot fit, before the first byte, that it does not."""
    if files_lib.is_remote(self._root):
      return None
    needed = sum(leaf.nbytes for leaf in leaves.values())
    free = shutil.disk_usage(self._root).free
    if needed <= free:
      return None
    return (
      f'the disk of {self._root} is too full for step {step}: it needs '
      f'{needed / 1e9:.3f} GB and {free / 1e9:.3f} GB are free; the '
      'checkpoints there are untouched: free space or write elsewhere'
    )

  def _complete_steps(self) -> list[int]:
    """Steps that were completed, oldest first, damaged ones included.

    A step whose whole directory is gone was removed by the user.
    """
    return [
      step
      for step, record in self._records.read_all().items()
      if record['state'] in ('complete', 'unreadable')
      and self.step_dir(step).exists()
    ]

  def _damage(self, step: int) -> str | None:
    """Verifies the files of `step`; each process takes a share of them."""
    record = self._records.read(step)
    if record is None or record['state'] != 'complete':
      return f'its record {self._records.path(step)} cannot be read'
    names = _share(sorted(record['files']))
    damage = integrity.find_damage(self.step_dir(step), record['files'], names)
    found = distributed.gather(f'checkpoint {step} verified', damage)
    return next((text for text in found if text), None)

  def _choose(self, step: int | None, fallback: bool) -> int:
    """Returns the verified step to read; raises UserError as restore()."""
    self.wait()
    steps = self._complete_steps()
    if step is not None and step not in steps:
      if self.step_dir(step).exists():
        raise UserError(
          f'{self._name(step)} is incomplete (its save was interrupted); '
          f'{self._advice(step)}'
        )
      raise UserError(
        f'there is no checkpoint of step {step} in {self._root}: '
        f'it has {", ".join(map(str, steps)) or "none"}'
      )
    if not steps:
      raise UserError(f'there is no complete checkpoint in {self._root}')
    candidates = steps[::-1] if step is None else [step]
    for candidate in candidates:
      damage = self._damage(candidate)
      if damage is None:
        return candidate
      message = f'{self._name(candidate)} is damaged: {damage}'
      if step is not None or not fallback:
        flag = ', or pass --resume_from_last_good' if step is None else ''
        raise UserError(f'{message}; {self._advice(candidate)}{flag}')
      logging.warning('%s; trying the one before', message)
    raise UserError(
      f'no good checkpoint is left in {self._root}: remove it to start again'
    )

  def _advice(self, bad_step: int) -> str:
    good = [step for step in self.good_steps() if step != bad_step]
    if not good:
      return 'no good one is left: remove the directory to start again'
    return (
      f'the last good one is step {good[-1]}: remove '
      f'{self.step_dir(bad_step)} or pass --step={good[-1]}'
    )

  def _finish(self, step: int, arrays: Mapping[str, Any]) -> None:
    """Waits for orbax's commit; then the record; then the removals."""
    self._io.finish_write(self._name(step))
    # Every process has written and sees what all have written.
    distributed.barrier(f'checkpoint {step} written')
    names = _share(integrity.list_files(self.step_dir(step)))
    shares = distributed.gather(
      f'checkpoint {step} hashed',
      integrity.hash_files(self.step_dir(step), names),
    )
    if self._primary:
      files = {name: info for share in shares for name, info in share.items()}
      self._complete(step, dict(sorted(files.items())), arrays)
    distributed.barrier(f'checkpoint {step} complete')

  def _complete(self, step: int, files, arrays) -> None:
    """Writes the record of a step, then removes what is not kept."""
    self._records.complete(step, files, arrays)
    steps = self._complete_steps()
    abandoned = [other for other in steps if other > step]
    if abandoned:
      logging.warning(
        'removing the checkpoints after step %d, which this run has left '
        'behind: %s',
        step,
        abandoned,
      )
    spare = [
      other
      for other in steps
      if other <= step and other not in self._keep_steps
    ]
    old = spare[: -self._max_to_keep] if self._max_to_keep else []
    for other in abandoned + old:
      self._remove(other)

  def _remove(self, step: int) -> None:
    self._records.mark(step, 'deleting')
    if self.step_dir(step).exists():
      self.step_dir(step).rmtree()
    self._records.remove(step)

  def _clean_up(self) -> None:
    """Removes what killed saves and removals have left behind."""
    for child in files_lib.children(self._root):
      if orbax_io.TEMPORARY in child.name and child.is_dir():
        child.rmtree()
    self._records.remove_temporary()
    for step, record in self._records.read_all().items():
      gone = not self.step_dir(step).exists()
      if gone or record['state'] in ('saving', 'deleting'):
        logging.info('cleaning up the unfinished step %d', step)
        self._remove(step)

  def _warn_of_unrecorded(self) -> None:
    for child in files_lib.children(self._root):
      if child.name.isdigit() and self._records.read(int(child.name)) is None:
        logging.warning(
          'ignoring %s: it has no integrity record, so it is incomplete or '
          'was copied without %s',
          child,
          self._records.path(int(child.name)),
        )


def _share(names: list[str]) -> list[str]:
  """This process's part of the files."""
  return names[jax.process_index() :: jax.process_count()]
