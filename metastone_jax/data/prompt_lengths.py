"""Prompts that are too long are found before a run starts.

Of a task with a fixed number of problems every prompt is encoded once, at the
start (tens of microseconds each): a long row would otherwise end the run at the
step that draws it, days later. Endless tasks are bounded by their options.
"""

from collections.abc import Iterator

from absl import logging

from metastone_jax import errors
from metastone_jax.data import chat
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.tasks import base, finite
from metastone_jax.tasks import mixture as mixture_lib

_CHUNK = 4096  # prompts that are encoded together


def without_long_prompts(
  mixture: mixture_lib.Mixture,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  max_prompt_length: int,
  template: chat.PromptTemplate,
) -> mixture_lib.Mixture:
  """The mixture without problems whose prompts are too long, if it may be.

  Args:
    mixture: of the run.
    tokenizer: of the prompts.
    max_prompt_length: tokens.
    template: chat form of the prompts.

  Returns:
    The mixture itself where all prompts fit.

  Raises:
    UserError: prompts are too long (the first are named) and the task does not
      say bad_rows='skip'; or all of a task's are.
  """
  changed = {}
  for name, task in mixture.tasks.items():
    if not isinstance(task, finite.FiniteTask):
      continue
    problems = task.problems()
    found = list(_too_long(problems, tokenizer, max_prompt_length, template))
    if not found:
      continue
    text = (
      f'task {name!r}: {len(found)} of {len(problems)} prompts have more than '
      f'data.max_prompt_length={max_prompt_length} tokens: '
      + errors.some_of([f'{task.where(p)} has {n:,}' for p, n in found])
    )
    if task.bad_rows == 'stop' or len(found) == len(problems):
      raise errors.UserError(
        f'{text}. Raise it, or take them out'
        + (", or leave them out with bad_rows='skip'" if task.may_skip else '')
      )
    logging.warning('%s; they are left out', text)
    changed[name] = task.without({problem.id for problem, _ in found})
  return mixture.replacing(changed) if changed else mixture


def _too_long(
  problems, tokenizer, max_prompt_length, template
) -> Iterator[tuple[base.Problem, int]]:
  """(problem, tokens of its prompt) where these are too many."""
  for start in range(0, len(problems), _CHUNK):
    chunk = problems[start : start + _CHUNK]
    prompts = tokenizer.encode_batch(
      [template.render(problem.question) for problem in chunk]
    )
    for problem, prompt in zip(chunk, prompts, strict=True):
      if len(prompt) > max_prompt_length:
        yield problem, len(prompt)
