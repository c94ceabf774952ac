"""Responses and scores as JSON lines in the released code's format (SPEC 7).

One problem a line:

    {"prompt", "answer", "output": {"content", "time", "solution_lst",
     "score_lst"}}

`content` is the response that best-of-N answers with; the authors' metric
script reads such files. Beside it, pass rates: what a filter by difficulty
reads, a problem a line:

    {"id", "question", "pass_rate", "samples"}
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from metastone_jax.evaluation.samples import EvaluationSamples
from metastone_jax.telemetry.files import write_bytes_atomic


def result_output(
  content: str,
  seconds: float,
  solutions: Sequence[str],
  scores: Sequence[float],
) -> dict[str, Any]:
  """The 'output' of one line.

  Args:
    content: the response that is the answer.
    seconds: of drawing the candidates.
    solutions: the candidates.
    scores: theirs.
  """
  return {
    'content': content,
    'time': seconds,
    'solution_lst': list(solutions),
    'score_lst': [float(score) for score in scores],
  }


def write_results(
  path: epath.PathLike,
  *,
  questions: Sequence[str],
  answers: Sequence[str],
  texts_PN: np.ndarray,  # noqa: N803
  samples: EvaluationSamples,
  seconds: float,
  token_ids: Sequence[Sequence[Sequence[int]]] | None = None,
) -> epath.Path:
  """Writes the file, whole or not at all.

  Args:
    path: of the file.
    questions: P prompts as the user asks them.
    answers: P reference answers.
    texts_PN: responses.
    samples: their scores.
    seconds: of drawing them all; a line gets its share.
    token_ids: ids of the responses, an entry `token_ids_lst` more.

  Returns:
    The path.
  """
  # Scores are at most 1: what is not eligible wins only alone.
  best_P = (samples.scores_PN + 2 * samples.eligible_PN).argmax(axis=1)
  lines = []
  for p, (question, answer) in enumerate(zip(questions, answers, strict=True)):
    output = result_output(
      texts_PN[p, best_P[p]],
      seconds / len(questions),
      texts_PN[p],
      samples.scores_PN[p],
    )
    if token_ids is not None:
      output['token_ids_lst'] = [np.asarray(i).tolist() for i in token_ids[p]]
    line = {'prompt': question, 'answer': answer, 'output': output}
    lines.append(json.dumps(line, ensure_ascii=False) + '\n')
  return write_bytes_atomic(path, ''.join(lines).encode())


def write_pass_rates(
  path: epath.PathLike, questions: Sequence[str], samples: EvaluationSamples
) -> epath.Path:
  """Writes the share of right samples of each problem, whole or not at all.

  Samples that the verifier had no verdict on are left out of rate and count; a
  problem that has no other has no line, as if it had not been measured.

  Args:
    path: of the file.
    questions: P prompts as the user asks them.
    samples: theirs.

  Returns:
    The path.
  """
  lines = [
    json.dumps(
      {
        'id': name,
        'question': question,
        'pass_rate': float(correct_N[judged_N].mean()),
        'samples': int(judged_N.sum()),
      },
      ensure_ascii=False,
    )
    + '\n'
    for name, question, correct_N, judged_N in zip(
      samples.problem_ids,
      questions,
      samples.correct_PN,
      ~samples.without_verdict_PN,
      strict=True,
    )
    if judged_N.any()
  ]
  return write_bytes_atomic(path, ''.join(lines).encode())
