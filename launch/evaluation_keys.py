"""What the draws and the verdicts of an evaluation depend on, as short names.

Results and responses are found again by these names alone, so everything that
could change them is in: of the model its files' checksums, not where it lies;
of the problems what they say, not where they come from. Verdicts have a name of
their own: another deadline or a mended answer judges the same responses again.
"""

import dataclasses
import hashlib
import json
from typing import Any

from etils import epath

from metastone_jax.checkpoints import integrity
from metastone_jax.sampling import SamplingConfig
from metastone_jax.training import loop

# Problems that stand for those of a task without end; its options are in too.
_SHOWN = 16
# What says how responses are judged, and nothing of the problems.
_OF_VERDICTS = ('verifier', 'verifier_options')
# More processes change no verdict.
_OF_SPEED = ('workers', 'recycle_after')


@dataclasses.dataclass(frozen=True)
class Keys:
  """Of one task of an evaluation.

  Attributes:
    draws: of all that the responses depend on.
    verdicts: of that, and of all that their verdicts depend on.
  """

  draws: str
  verdicts: str

  @classmethod
  def of(
    cls,
    root: epath.Path,
    step: int,
    setup: loop.Setup,
    task: str,
    split: str,
    sampling: SamplingConfig,
  ) -> 'Keys':
    """Of a checkpoint, a task and a way to draw.

    Args:
      root: folder of the model.
      step: of its checkpoint.
      setup: built from it.
      task: name of the task.
      split: of its problems.
      sampling: of the draws.
    """
    recipe, data = setup.recipe, setup.recipe.data
    found = setup.mixture.tasks[task]
    limit = found.num_heldout if split == 'heldout' else found.num_train
    problems = [
      found.problem(i, split) for i in range(_SHOWN if limit is None else limit)
    ]
    options = dict(data.task_options.get(task, {}))
    endless = None
    if limit is None:
      endless = [
        {k: v for k, v in options.items() if k not in _OF_VERDICTS},
        data.num_demonstrations if split == 'train' else 0,
      ]
    record = integrity.Records(root / 'checkpoints').read(step)
    draws = _digest(
      record['files'],
      {
        name: hashlib.sha256(content).hexdigest()
        for name, content in setup.files.items()
      },
      dataclasses.asdict(setup.model_config),
      dataclasses.asdict(sampling),
      recipe.seed,
      data.think_tags,
      data.instruction,
      data.system,
      task,
      split,
      data.seed,
      endless,
      [[problem.id, problem.question] for problem in problems],
    )
    verify = dataclasses.asdict(recipe.verify)
    verdicts = _digest(
      draws,
      options,
      {k: v for k, v in verify.items() if k not in _OF_SPEED},
      [[problem.answer, problem.data] for problem in problems],
    )
    return cls(draws, verdicts)


def _digest(*parts: Any) -> str:
  text = json.dumps(parts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]
