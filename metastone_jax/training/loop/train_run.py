"""Trains a recipe in a folder, or goes on there: `launch.train` and sweeps."""

from collections.abc import Callable

from etils import epath

from metastone_jax import telemetry as telemetry_lib
from metastone_jax.checkpoints import write_folder, write_json_atomic
from metastone_jax.parallel import distributed
from metastone_jax.training.loop import folder, plan
from metastone_jax.training.loop.recipe import Recipe
from metastone_jax.training.loop.run import Run


def train(
  recipe: Recipe,
  workdir: epath.PathLike,
  *,
  step: int | None = None,
  resume_from_last_good: bool = False,
  check: Callable[[], None] = lambda: None,
) -> epath.Path:
  """Trains a recipe in a folder; resumes what is there.

  Args:
    recipe: the run.
    workdir: gets config.json, checkpoints/, metrics/, evaluation/, report/.
    step: checkpoint to resume from; None = the newest.
    resume_from_last_good: pass over damaged checkpoints.
    check: called where the run may be stopped; what it raises (in all
      processes or in none) ends the run and saves nothing more: the folder
      belongs to somebody else, say.

  Returns:
    Path of report.html.

  Raises:
    UserError: bad input.
    Interrupted: SIGTERM or SIGINT arrived; everything is saved.
  """
  workdir = epath.Path(workdir)
  primary = distributed.is_primary()
  folder.check_workdir(recipe, workdir, step)
  with (
    telemetry_lib.StopRequest() as stop,
    telemetry_lib.Progress(enabled=primary) as progress,
  ):
    progress.phase('set-up', 1)
    run = Run(recipe, workdir, progress, stop, check)
    try:
      progress.update(1)
      progress.note(plan.describe(run.setup))
      if run.demonstrations is not None:
        progress.note(plan.describe_steps(run.setup, run.demonstrations))
      resuming = step is not None or run.manager.latest_step() is not None
      if resuming:  # first: what is refused changes nothing
        run.resume(step, resume_from_last_good)
      if primary:
        write_folder(workdir, run.setup.model_config, run.setup.files)
        write_json_atomic(workdir / 'config.json', folder.config_dict(recipe))
      if resuming:
        run.stages.restore(run.phase_index)
      else:
        run.fresh()
      return run.run()
    finally:
      run.close()
