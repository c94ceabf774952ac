"""Arguments that the large recipes share: `configs/32b.py:mesh=v5p-128,...`."""


def apply_argument(c, arg: str) -> None:
  """Changes a recipe as its argument says.

  Args:
    c: the ConfigDict.
    arg: comma-separated: `mesh=NAME` (one of c.layouts, put in place here, so
      that flags can still change its values), `source=FOLDER` (the model),
      `data=TASK` (the problems), `runlocal` (short rows and few steps, to see
      the whole of it work on one machine).

  Raises:
    ValueError: anything else.
  """
  for part in filter(None, arg.split(',')):
    name, _, value = part.partition('=')
    if name == 'mesh' and value:
      if value not in c.layouts:
        raise ValueError(
          f'mesh={value} is none of the layouts of recipe {c.name}: '
          f'{", ".join(c.layouts)}'
        )
      _merge(c, c.layouts[value])
      c.layouts = {}
    elif name == 'source' and value:
      c.model.source = value
    elif name == 'data' and value:
      c.data.source = value
    elif part == 'runlocal':
      _run_local(c)
    else:
      raise ValueError(
        f'argument {part!r} of recipe {c.name} is unknown; use mesh=NAME, '
        'source=FOLDER, data=TASK or runlocal, separated by commas'
      )


def _merge(c, values) -> None:
  for key, value in values.items():
    if key in ('mesh', 'rollout_mesh') or not hasattr(value, 'items'):
      c[key] = value
    else:
      _merge(c[key], value)


def _run_local(c) -> None:
  c.layouts = {}
  c.mesh = dict(fsdp=-1)
  c.rollout_mesh = dict(data=-1)
  c.sampling.slots = 0
  c.data.max_prompt_length = 128
  c.data.max_response_length = 128
  joint = c.phases.joint
  joint.steps = 2
  joint.prompts_per_step = 8
  joint.samples_per_prompt = 2
  joint.updates_per_rollout = min(2, joint.updates_per_rollout)
  joint.sequences_per_microbatch = 8
  joint.evaluate_every = 0
  c.evaluation.problems = 8
  c.evaluation.stage_samples = 2
  c.evaluation.final_samples = 2
  c.evaluation.small_problems = 8
  c.evaluation.small_samples = 2
  c.evaluation.ks = (1, 2)
