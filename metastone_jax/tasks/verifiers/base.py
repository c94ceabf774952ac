"""What a verifier is: a small picklable object that judges one response.

A verifier that runs code of others on what a model has written (a computer
algebra system, a program) may hang or take all memory: it says `isolated`, and
is only ever called in a process that can be killed (see `tasks.pool`).

A new verifier is one file here and one line in `registry.py`.
"""

import abc

from metastone_jax.tasks.base import Problem, Verdict


class Verifier(abc.ABC):
  """Judges responses to problems of one kind.

  Attributes:
    name: in configs and messages.
    isolated: call it in a process of its own with a deadline.
    deadline_s: seconds that a check may take; None = what the pool allows.
  """

  name: str
  isolated: bool = False
  deadline_s: float | None = None

  def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
    """Imports what `verify` needs.

    Called once in a process before its first check, when the deadline does not
    run yet: an import may take seconds.
    """

  @abc.abstractmethod
  def verify(self, problem: Problem, response_text: str) -> Verdict:
    """Checks the text that follows the prompt; never trusts the thinking.

    Args:
      problem: of which `answer` and `data` are what it compares with.
      response_text: what the model wrote, hostile input.
    """

  def check(self, problem: Problem) -> str | None:
    """Why this problem could never be verified, or None.

    Called once when problems are loaded, so that a bad row is named with its
    file and line and never met in training.

    Args:
      problem: a problem as its source gives it.
    """
    return None if problem.answer.strip() else 'its answer is empty'
