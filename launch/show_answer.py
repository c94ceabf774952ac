"""An answer on the terminal: the winner, each step coloured by its score."""

from collections.abc import Callable, Sequence

import numpy as np
from rich import console as rich_console
from rich import text as rich_text

from metastone_jax.sampling.engine import Answer, Candidate

_ENDINGS = {'stop': '', 'length': ', cut off', 'pruned': ', given up'}
# From a score of 0 to 1.
_COLOURS = ('red', 'dark_orange', 'yellow', 'chartreuse3', 'green')


def steps(
  token_R: np.ndarray, step_mask_R: np.ndarray, step_logit_R: np.ndarray
) -> list[tuple[np.ndarray, float | None]]:
  """(tokens, score) of each step; the rest, which no mark ends, has none.

  Args:
    token_R: the response.
    step_mask_R: where token r is a counted mark; may be shorter.
    step_logit_R: z of each.
  """
  found, start = [], 0
  for r in np.flatnonzero(step_mask_R):
    score = 1 / (1 + np.exp(-float(step_logit_R[r])))
    found.append((token_R[start : r + 1], score))
    start = int(r) + 1
  if start < len(token_R):
    found.append((token_R[start:], None))
  return found


def coloured(
  token_R: np.ndarray,
  candidate: Candidate,
  decode: Callable[[Sequence[int]], str],
) -> rich_text.Text:
  """The text of a response whose thinking is this candidate's."""
  text = rich_text.Text()
  for tokens, score in steps(
    token_R, candidate.step_mask_R, candidate.step_logit_R
  ):
    style = ''
    if score is not None:
      style = _COLOURS[min(int(score * len(_COLOURS)), len(_COLOURS) - 1)]
    text.append(decode(tokens.tolist()), style=style)
  return text


def show(
  answer: Answer,
  decode: Callable[[Sequence[int]], str],
  *,
  seconds: float,
  console: rich_console.Console | None = None,
) -> None:
  """Prints the winner and the ranking.

  Args:
    answer: what the problem got.
    decode: ids -> text, without the end.
    seconds: it took.
    console: where to; standard output by default, coloured on a terminal.
  """
  console = console or rich_console.Console(highlight=False, soft_wrap=True)
  winner = answer.candidates[answer.best]
  console.print(coloured(answer.token_A, winner, decode))
  console.print(
    f'\n{len(answer.candidates)} candidates, {answer.tokens} tokens in '
    f'{seconds:.1f} s (compilation included); rank, score, steps, tokens:',
    markup=False,
  )
  order = sorted(
    range(len(answer.candidates)), key=lambda i: -answer.candidates[i].score
  )
  for rank, i in enumerate(order, 1):
    candidate = answer.candidates[i]
    ending = _ENDINGS[candidate.reason]
    chosen = ' <- the answer' if i == answer.best else ''
    console.print(
      f'{rank:3d}  {candidate.score:.3f}  {candidate.step_mask_R.sum():3d}  '
      f'{len(candidate.token_R):5d}{ending}{chosen}',
      markup=False,
    )
