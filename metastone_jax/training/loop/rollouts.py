"""Where a run stands in its problems, and the rollout of every step."""

import jax

from metastone_jax.data import DataPosition
from metastone_jax.parallel import distributed
from metastone_jax.telemetry import Stopwatch
from metastone_jax.training.loop import collect as collect_lib
from metastone_jax.training.loop.draws import Sampler
from metastone_jax.training.loop.recipe import PhaseConfig
from metastone_jax.training.loop.setup import Setup
from metastone_jax.training.loop.unfinished import Group


class Rollouts:
  """This host's rollouts.

  Attributes:
    problems: the endless stream.
    position: in it, of all hosts.
    unfinished: groups of this host that the next step goes on with.
  """

  def __init__(self, setup: Setup):
    self._setup = setup
    self.problems = setup.problems('train')
    self.fresh()

  def fresh(self) -> None:
    """As a run begins."""
    self.position = self.problems.start()
    self.unfinished: list[Group] = []

  def state(self, phase: PhaseConfig) -> dict:
    """JSON-able, the same on every host; all must call it."""
    state = {'problem_position': self.position.to_json()}
    if phase.partial_rollouts:
      held = distributed.gather_json([g.to_json() for g in self.unfinished])
      state['unfinished'] = [tree for host in held for tree in host]
    return state

  def restore(self, state: dict, phase: PhaseConfig) -> None:
    """The inverse of `state`, on any number of hosts that share the groups."""
    self.position = DataPosition.from_json(state['problem_position'])
    self.unfinished = []
    trees = state.get('unfinished', [])
    for tree in trees[self._setup.hosts.share(len(trees), 'partial_rollouts')]:
      (group,) = collect_lib.new_groups(
        self.problems, tree['index'], 1, phase.samples_per_prompt
      )
      self.unfinished.append(
        Group.from_json(tree, group.request, self._setup.train_sampling)
      )

  def sampler(self, phase: PhaseConfig) -> Sampler:
    """This host's draws in a phase."""
    together = phase.prompts_per_step + phase.partial_rollouts
    return Sampler.build(
      self._setup,
      self._setup.train_sampling,
      problems=together // self._setup.hosts.count,
      samples=phase.samples_per_prompt,
      partial=phase.partial_rollouts > 0,
    )

  def collect(
    self,
    phase: PhaseConfig,
    params: jax.Array,
    watch: Stopwatch,
    *,
    last: bool,
  ) -> collect_lib.Collected:
    """The rollout of a step; moves on in the problems.

    Args:
      phase: of the step.
      params: current parameters, on the mesh of all devices.
      watch: gets time/rollout and time/verify.
      last: of its phase: every group that was begun ends with it.
    """
    hosts = self._setup.hosts
    wanted = phase.prompts_per_step - len(self.unfinished) * hosts.count
    if not last:
      wanted += phase.partial_rollouts
    share = hosts.share(wanted, 'prompts_per_step')
    mine = self.problems.advance(self.position, share.start)
    first, count = self.problems.global_index(mine), share.stop - share.start
    common = self._setup, self.sampler(phase), params, phase
    if phase.partial_rollouts:
      new = collect_lib.new_groups(
        self.problems, first, count, phase.samples_per_prompt
      )
      collected, self.unfinished = collect_lib.collect_partial(
        *common,
        self.problems,
        self.unfinished + new,
        phase.prompts_per_step // hosts.count,
        watch,
      )
    else:
      batch = self.problems.batch_at(mine, count)
      collected = collect_lib.collect(*common, batch, first, watch)
    self.position = self.problems.advance(self.position, wanted)
    return collected
