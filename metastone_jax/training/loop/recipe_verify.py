"""How a recipe has responses verified."""

import dataclasses

from metastone_jax.tasks import VerifierPool


@dataclasses.dataclass(frozen=True)
class VerifyConfig:
  """Processes of the verifiers that need some, of each host.

  Attributes:
    workers: processes at a time; 0 = one a CPU of the host, up to 8.
    deadline_s: seconds that one check may take, unless its verifier says else;
      then its process is killed, and the check counts as verify/timeout.
    memory_gb: address space of a process, 1e9 bytes; 0 = no limit.
    recycle_after: checks after which a process is replaced, for what leaks.
  """

  workers: int = 0
  deadline_s: float = 10.0
  memory_gb: float = 4.0
  recycle_after: int = 2000

  def __post_init__(self):
    self.pool()  # refuses bad numbers; no process starts

  def pool(self) -> VerifierPool:
    """A pool; its processes start with the first response."""
    return VerifierPool(**dataclasses.asdict(self))
