"""Optional mirrors of the metrics: TensorBoard and Weights & Biases.

Contract: a sink receives every row that the JSONL receives and may be lost
without harm; the JSONL stays the truth. Scalars appear as `<phase>/<name>`
over `step`, so phases that count their own steps do not overwrite each other.
A sink that is asked for but not installed is a UserError with the command
that installs it.
"""

import json
import math
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.telemetry import files


class Sink(Protocol):
  """What a mirror of the metrics must offer."""

  def write(self, row_index: int, row: Mapping[str, Any]) -> None:
    """Mirrors one row of the JSONL."""

  def close(self) -> None:
    """Flushes and closes the mirror."""


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
  return {
    f'{row["phase"]}/{name}': float(value)
    for name, value in row.items()
    if name not in ('step', 'phase')
    and isinstance(value, int | float)
    and math.isfinite(value)
  }


class TensorBoardSink:
  """Event files in `<directory>/tensorboard`, written by tensorboardX."""

  def __init__(self, directory: epath.Path, config: Mapping[str, Any] | None):
    try:
      import tensorboardX  # noqa: PLC0415  Optional dependency.
    except ImportError as error:
      raise UserError(
        "metric sink 'tensorboard' needs the package tensorboardX: "
        'pip install tensorboardX, or leave the sink out'
      ) from error
    self._writer = tensorboardX.SummaryWriter(
      logdir=str(directory / 'tensorboard')
    )
    if config is not None:
      text = json.dumps(files.to_jsonable(config), indent=2)
      self._writer.add_text('config', f'```\n{text}\n```', 0)

  def write(self, row_index: int, row: Mapping[str, Any]) -> None:
    """Adds each finite scalar of `row` at the row's step."""
    del row_index
    for name, value in _scalars(row).items():
      self._writer.add_scalar(name, value, global_step=row['step'])

  def close(self) -> None:
    """Flushes the event file."""
    self._writer.close()


class WandbSink:
  """A Weights & Biases run, resumed under the id kept in the directory.

  Account, project and offline mode are wandb's own environment variables
  (WANDB_PROJECT, WANDB_MODE, ...). The internal step is the row index, which
  only grows; `step` is the horizontal axis.
  """

  def __init__(self, directory: epath.Path, config: Mapping[str, Any] | None):
    try:
      import wandb  # noqa: PLC0415  Optional dependency.
    except ImportError as error:
      raise UserError(
        "metric sink 'wandb' needs the package wandb: "
        'pip install wandb, or leave the sink out'
      ) from error
    id_path = directory / 'metrics' / 'wandb.json'
    if not id_path.exists():
      files.write_json_atomic(id_path, {'id': uuid.uuid4().hex[:12]})
    self._run = wandb.init(
      id=json.loads(id_path.read_text())['id'],
      resume='allow',
      name=directory.name,
      config=None if config is None else files.to_jsonable(config),
      dir=None if files.is_remote(directory) else str(directory),
    )
    self._run.define_metric('*', step_metric='step')

  def write(self, row_index: int, row: Mapping[str, Any]) -> None:
    """Logs the finite scalars of `row`; rows seen before are dropped."""
    self._run.log({'step': row['step'], **_scalars(row)}, step=row_index)

  def close(self) -> None:
    """Finishes the run."""
    self._run.finish()


_SINKS = {'tensorboard': TensorBoardSink, 'wandb': WandbSink}


def make_sinks(
  names: tuple[str, ...] | list[str],
  directory: epath.Path,
  config: Mapping[str, Any] | None = None,
) -> list[Sink]:
  """Opens the sinks called `names`.

  Args:
    names: Any of 'tensorboard' and 'wandb'.
    directory: The run's directory.
    config: Recorded with the run where the sink can hold it.

  Returns:
    The open sinks, in the order of `names`.

  Raises:
    UserError: For an unknown name or a package that is not installed.
  """
  for name in names:
    if name not in _SINKS:
      raise UserError(
        f'unknown metric sink {name!r}: choose from {sorted(_SINKS)}'
      )
  return [_SINKS[name](directory, config) for name in names]
