"""Padded rows: the one place that knows how prompt and response are joined.

A row is [prompt | response | pad]. Everything per token is aligned with the
PREDICTING position: index t speaks of the prediction of tokens[t + 1].
"""

from collections.abc import Sequence

import numpy as np

from metastone_jax import errors


def pad_rows(
  rows: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """Stacks lists of ids, padded on the right.

  Args:
    rows: B lists, none longer than `width`.
    width: columns of the result.
    pad_id: fills the rest.

  Returns:
    (ids_BT int32, length_B int32).
  """
  length_B = np.fromiter(map(len, rows), np.int32, len(rows))
  if rows and length_B.max() > width:
    raise ValueError(f'a row of {length_B.max()} ids, wider than {width}')
  ids_BT = np.full((len(rows), width), pad_id, np.int32)
  ids_BT[np.arange(width) < length_B[:, None]] = np.fromiter(
    (i for row in rows for i in row), np.int32, int(length_B.sum())
  )
  return ids_BT, length_B


def assemble_rows(
  prompt_BS: np.ndarray,
  prompt_length_B: np.ndarray,
  response_BR: np.ndarray,
  response_length_B: np.ndarray,
  total_length: int,
  *,
  pad_id: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Joins right-padded prompts and responses into training rows.

  Args:
    prompt_BS: prompt ids; row b counts up to prompt_length_B[b] >= 1.
    prompt_length_B: tokens of each prompt.
    response_BR: response ids; row b counts up to response_length_B[b].
    response_length_B: tokens of each response, may be 0.
    total_length: T of the result.
    pad_id: fills the rest.

  Returns:
    tokens_BT int32, and response_mask_BT bool: True at t where tokens[t + 1]
    is a token of the response, so row b has response_length_B[b] of them, the
    first at prompt_length_B[b] - 1.

  Raises:
    UserError: a row needs more than `total_length` tokens.
    ValueError: shapes or lengths that contradict each other.
  """
  prompt_BS = np.asarray(prompt_BS)
  response_BR = np.asarray(response_BR)
  prompt_B = np.asarray(prompt_length_B, np.int64)
  response_B = np.asarray(response_length_B, np.int64)
  rows, prompt_width = prompt_BS.shape
  _, response_width = response_BR.shape
  if not rows == len(response_BR) == len(prompt_B) == len(response_B):
    raise ValueError('prompts, responses and lengths have different rows')
  if rows and (prompt_B.min() < 1 or prompt_B.max() > prompt_width):
    raise ValueError(f'prompt lengths must be in 1..{prompt_width}')
  if rows and (response_B.min() < 0 or response_B.max() > response_width):
    raise ValueError(f'response lengths must be in 0..{response_width}')
  end_B = prompt_B + response_B
  if rows and end_B.max() > total_length:
    worst = int(end_B.argmax())
    raise errors.UserError(
      f'row {worst} has {prompt_B[worst]} prompt and {response_B[worst]} '
      f'response tokens, more than {total_length}; raise '
      'data.max_prompt_length or data.max_response_length'
    )
  position_T = np.arange(total_length)
  in_prompt_BT = position_T < prompt_B[:, None]
  in_response_BT = ~in_prompt_BT & (position_T < end_B[:, None])
  tokens_BT = np.full((rows, total_length), pad_id, np.int32)
  # Boolean indexing reads and writes row by row, left to right, on both
  # sides, so the k-th id of a prompt lands on its k-th place.
  tokens_BT[in_prompt_BT] = prompt_BS[
    np.arange(prompt_width) < prompt_B[:, None]
  ]
  tokens_BT[in_response_BT] = response_BR[
    np.arange(response_width) < response_B[:, None]
  ]
  response_mask_BT = np.zeros((rows, total_length), bool)
  response_mask_BT[:, :-1] = in_response_BT[:, 1:]
  return tokens_BT, response_mask_BT
