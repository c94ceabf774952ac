"""Responses of an evaluation that are drawn already, kept on disk.

Contract: a folder of segments, JSON lines, each written whole and never again,
so an object store will do. A response is kept before it is verified: verdicts
are cheap beside draws, and come again, by other rules too. Who draws asks
`found` first. Several processes write into one folder, which all of them can
read if it is shared; where it is not, each goes on with its own.
"""

import abc
import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Self

from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.telemetry.files import (
  children,
  write_bytes_atomic,
  writing,
)

# Seconds between two segments: at least so many, and a share of all so far,
# so that days of drawing make hundreds of files and not tens of thousands.
_SECONDS, _SHARE = 10.0, 0.02


@dataclasses.dataclass(frozen=True)
class Kept:
  """One response, before its verdict.

  Attributes:
    problem: index in the set.
    number: of the candidate, or of the answer in the form of traces.
    text: as the tokenizer decodes it.
    score: of its trace.
    finished: ended by itself.
    tokens: drawn for it.
    thinking: how many of them are thinking.
    marks: step marks that were scored.
    flops: of drawing them behind the prompt, the score head left out.
    seconds: of the job that went by for it, other responses beside it counted
      out: those of a set add up to the time it took, however often that was
      interrupted.
    token_ids: of the response; None where nobody asks for them.
  """

  problem: int
  number: int
  text: str
  score: float
  finished: bool
  tokens: int
  thinking: int
  marks: int
  flops: float
  seconds: float
  token_ids: list[int] | None = None


class Segments(abc.ABC):
  """Items that go to a folder some seconds at a time.

  A context manager that writes the rest; a kind of items says how.

  Args:
    folder: of the segments; made with the first one.
  """

  def __init__(self, folder: epath.PathLike):
    self._folder = epath.Path(folder)
    self._fresh: list[Any] = []
    self._started = self._written = time.monotonic()

  @abc.abstractmethod
  def _write(self, name: str, items: Sequence[Any]) -> None:
    """Writes a segment, whole, under a name that no other has."""

  def add(self, item) -> None:
    """One more; a segment follows within some seconds."""
    self._fresh.append(item)
    now = time.monotonic()
    if now - self._written > max(_SECONDS, _SHARE * (now - self._started)):
      self.flush()

  def flush(self) -> None:
    """Writes what no segment has yet."""
    self._written = time.monotonic()
    if self._fresh:
      self._write(uuid.uuid4().hex, self._fresh)
      self._fresh = []

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    self.flush()


class KeptResponses(Segments):
  """The folder of one evaluation.

  Attributes:
    found: (problem, number) -> response, of the folder and of `add`.

  Raises:
    UserError: a segment that is not ours.
  """

  def __init__(self, folder: epath.PathLike):
    super().__init__(folder)
    self.found: dict[tuple[int, int], Kept] = {}
    for path in sorted(children(self._folder)):
      if path.name.endswith('.jsonl'):
        for response in _read(path):
          self.found[response.problem, response.number] = response

  def add(self, response: Kept) -> None:
    """One more; a segment follows within some seconds."""
    self.found[response.problem, response.number] = response
    super().add(response)

  def _write(self, name: str, items: Sequence[Kept]) -> None:
    lines = [
      json.dumps(dataclasses.asdict(response), ensure_ascii=False) + '\n'
      for response in items
    ]
    path = self._folder / f'{name}.jsonl'
    with writing(path, 'the last responses are lost, those before them stand'):
      write_bytes_atomic(path, ''.join(lines).encode())


def _read(path: epath.Path) -> list[Kept]:
  try:
    # By bytes: a text's own splitlines() ends lines at U+2028 too.
    lines = path.read_bytes().splitlines()
    return [Kept(**json.loads(line)) for line in lines]
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(
      f'{path} is no segment of responses ({error}); remove it, and its '
      'responses are drawn again'
    ) from error
