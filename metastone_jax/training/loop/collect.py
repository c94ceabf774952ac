"""One rollout of the policy: problems in, training rows and metrics out.

Each host draws, verifies and assembles its own problems; a group never spans
hosts. A response is verified from the moment in which it has ended, while the
devices write the others. Metrics are of all hosts: computed by every host from
the few numbers a row that it needs of the others, in the order of one process.
"""

import dataclasses

import numpy as np

from metastone_jax import policy, sprm
from metastone_jax.data import ProblemDataset, assemble_rows
from metastone_jax.parallel import distributed
from metastone_jax.sampling.engine import Candidate
from metastone_jax.tasks import (
  Problem,
  Scoring,
  count_failures,
  count_reasons,
)
from metastone_jax.telemetry import Stopwatch
from metastone_jax.training.loop.draws import Sampler, requests, stack
from metastone_jax.training.loop.recipe import PhaseConfig
from metastone_jax.training.loop.setup import Setup
from metastone_jax.training.loop.unfinished import Group, go_on

Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Collected:
  """Host arrays of one rollout, B = P x N rows, group-major.

  Attributes:
    rows: fields of a training batch (see training.step), this host's.
    metrics: reward/*, score/*, rollout/*, verify/* of the step, over all hosts.
    tokens: response tokens drawn, by all hosts.
    row_length_B: tokens of every row, prompt included, of all hosts.
    prompt_length_B: of its prompt.
  """

  rows: Rows
  metrics: dict[str, float]
  tokens: int
  row_length_B: np.ndarray
  prompt_length_B: np.ndarray


def base_rows(
  tokens_BT: np.ndarray, length_B: np.ndarray, first_row: int
) -> Rows:
  """The fields every row has: one segment, its targets and positions."""
  B, T = tokens_BT.shape
  target_BT = np.zeros_like(tokens_BT)
  target_BT[:, :-1] = tokens_BT[:, 1:]
  place_T = np.arange(T, dtype=np.int32)
  return {
    'tokens_BT': tokens_BT,
    'target_BT': target_BT,
    'position_BT': np.broadcast_to(place_T, (B, T)).copy(),
    'segment_BT': (place_T[None] < length_B[:, None]).astype(np.int32),
    'row_B': (np.arange(B) + first_row).astype(np.uint32),
    'temperature_B': np.ones(B, np.float32),
  }


def demonstration_rows(batch: dict[str, np.ndarray], first_row: int) -> Rows:
  """Supervised rows of `DemonstrationDataset.batch_at`."""
  rows = base_rows(batch['tokens_BT'], batch['length_B'], first_row)
  place_T = np.arange(rows['tokens_BT'].shape[1])[None]
  rows['lm_mask_BT'] = (place_T >= batch['prompt_length_B'][:, None] - 1) & (
    place_T < batch['length_B'][:, None] - 1
  )
  return rows


def join_rows(parts: list[Rows], xp=np) -> Rows:
  """Stacks rows of different kinds; a field that one lacks is 0 there.

  Args:
    parts: the rows.
    xp: numpy or jax.numpy, as the rows are.
  """
  names = {name: part[name] for part in parts for name in part}
  joined = {}
  for name, example in names.items():
    joined[name] = xp.concatenate(
      [
        part[name]
        if name in part
        else xp.zeros(
          (len(part['tokens_BT']),) + example.shape[1:], example.dtype
        )
        for part in parts
      ]
    )
  return joined


def collect(
  setup: Setup,
  sampler: Sampler,
  params,
  phase: PhaseConfig,
  problem_batch,
  first_draw: int,
  watch: Stopwatch,
) -> Collected:
  """Draws, verifies and assembles one rollout.

  Args:
    setup: of the run.
    sampler: draws of training.
    params: current parameters, on the mesh of all devices.
    phase: batch words and objective.
    problem_batch: from `ProblemDataset.batch_at`, this host's problems.
    first_draw: global index of their first; fixes the randomness.
    watch: gets time/rollout and time/verify, what verifiers took beyond it.

  Returns:
    Rows and metrics.
  """
  problems, prompt_PS, length_P = problem_batch
  # Draw indices are int32.
  draw_P = (np.arange(len(problems)) + first_draw) % 2**31
  wanted = requests(prompt_PS, length_P, draw_P, phase.samples_per_prompt)
  index_P = np.arange(len(problems)) + first_draw
  scoring = Scoring(setup.mixture.tasks, setup.verifiers)
  with watch('rollout'):
    drawn = sampler.rollout(
      params,
      wanted,
      lambda p, n, candidate: add_response(
        scoring, setup, (index_P[p], n), problems[p], candidate
      ),
    )
  with watch('verify'):
    return _assemble(setup, phase, problem_batch, drawn, index_P, scoring)


def add_response(
  scoring: Scoring, setup: Setup, row, problem: Problem, candidate: Candidate
) -> str:
  """Has a candidate verified; returns its text, as the model wrote it.

  Args:
    scoring: gets it.
    setup: of the run.
    row: what it is called there.
    problem: that it answers.
    candidate: that has ended.
  """
  text = setup.tokenizer.decode(candidate.token_R.tolist())
  scoring.add(row, problem, setup.chat.canonical(text))
  return text


def new_groups(
  problems: ProblemDataset, first: int, count: int, samples: int
) -> list[Group]:
  """Groups of which nothing is written.

  Args:
    problems: the data set.
    first: global index of the first.
    count: how many; may be 0.
    samples: responses to each.
  """
  found = []
  for index in range(first, first + count):
    _, prompt_PS, length_P = _problem(problems, index)
    (request,) = requests(prompt_PS, length_P, [index % 2**31], samples)
    found.append(Group.new(index, request))
  return found


def _problem(problems: ProblemDataset, index: int):
  return problems.batch_at(problems.advance(problems.start(), index), 1)


def collect_partial(
  setup: Setup,
  sampler: Sampler,
  params,
  phase: PhaseConfig,
  problems: ProblemDataset,
  groups: list[Group],
  needed: int,
  watch: Stopwatch,
) -> tuple[Collected, list[Group]]:
  """As `collect`, of the groups that are complete first.

  Args:
    setup: of the run.
    sampler: draws of training, built for partial rollouts.
    params: current parameters, on the mesh of all devices.
    phase: batch words and objective.
    problems: the data set.
    groups: this host's, the unfinished ones of the last step among them.
    needed: groups of them that this host's share of an update takes.
    watch: gets time/rollout and time/verify.

  Returns:
    Rows and metrics of `needed` groups, and the groups for the next step.
  """
  old = {group.index: group.tokens for group in groups}
  scoring = Scoring(setup.mixture.tasks, setup.verifiers)
  batches = {}

  def verify(group: Group) -> None:
    batches[group.index] = _problem(problems, group.index)
    (problem,) = batches[group.index][0]
    for n, candidate in enumerate(group.candidates):
      add_response(scoring, setup, (group.index, n), problem, candidate)

  with watch('rollout'):
    done, left = go_on(sampler.engine(params), groups, needed, verify)
    drawn = stack(
      [candidate for group in done for candidate in group.candidates],
      len(done),
      sampler.config,
    )
  with watch('verify'):
    index_P = np.array([group.index for group in done])
    found = [batches[index] for index in index_P]
    batch = (
      [problem for batch in found for problem in batch[0]],
      *(np.concatenate([batch[i] for batch in found]) for i in (1, 2)),
    )
    old_PN = np.stack([old[index] for index in index_P])
    rows = _assemble(setup, phase, batch, drawn, index_P, scoring, old_PN)
    return rows, left


def _assemble(
  setup, phase, problem_batch, drawn, index_P, scoring, old_PN=None
):
  problems, prompt_PS, length_P = problem_batch
  P, N = drawn.length_PN.shape
  B, R = P * N, drawn.token_PNR.shape[-1]
  token_BR = drawn.token_PNR.reshape(B, R)
  length_B = drawn.length_PN.reshape(B)
  finished_B = drawn.finished_PN.reshape(B)
  scores = scoring.collect(
    [(index, n) for index in index_P for n in range(N)], finished_B
  )
  reward_B = scores.reward_B
  correct_B = (reward_B > 0.5) & finished_B
  group_B = np.repeat(np.arange(P), N)
  parts = reward_parts(phase, scores.parsed_B, finished_B, length_B, R)
  shaped_B = sum(parts.values(), reward_B)
  advantage_B = np.asarray(
    policy.group_advantage(
      shaped_B,
      group_B,
      normalise_std=phase.objective_config.normalise_std,
    ),
    np.float32,
  )
  prompt_length_B = np.repeat(length_P, N)
  T = setup.total_length
  tokens_BT, response_BT = assemble_rows(
    np.repeat(prompt_PS, N, axis=0),
    prompt_length_B,
    token_BR,
    length_B,
    T,
    pad_id=setup.tokenizer.pad_id,
  )
  rows = base_rows(tokens_BT, prompt_length_B + length_B, 0)
  row_PN = index_P[:, None] * N + np.arange(N)
  rows['row_B'] = row_PN.reshape(B).astype(np.uint32)

  def on_rows(value_BR, dtype):
    """Response index r -> predicting position prompt_length - 1 + r."""
    out_BT = np.zeros((B, T), dtype)
    out_BT[response_BT] = value_BR.reshape(B, R)[
      np.arange(R) < length_B[:, None]
    ]
    return out_BT

  forced_BT = on_rows(drawn.forced_PNR, bool)
  policy_mask_BT = response_BT & ~forced_BT
  if phase.mask_truncated:
    policy_mask_BT &= finished_B[:, None]
  if phase.drop_zero_variance:
    zero_variance = policy.zero_variance_groups(shaped_B, group_B)
    policy_mask_BT &= ~zero_variance.mask_B[:, None]
  rows |= {
    'temperature_B': np.full(
      B, setup.train_sampling.temperature or 1.0, np.float32
    ),
    'policy_mask_BT': policy_mask_BT,
    'advantage_B': advantage_B,
    'sampler_log_prob_BT': on_rows(drawn.log_prob_PNR, np.float32),
    'step_mask_BT': on_rows(drawn.step_mask_PNR, bool),
    'step_logit_BT': on_rows(drawn.step_logit_PNR, np.float32),
    'correct_B': correct_B,
    'score_weight_B': scores.score_weight_B,
  }
  names = sorted(setup.recipe.data.tasks)
  old = {} if old_PN is None else {'old': old_PN.reshape(B)}
  found = distributed.all_gather(
    {
      'reward': reward_B,
      'shaped': shaped_B,
      'failure': scores.failure_B,
      'reason': scores.reason_B,
      **{f'part/{name}': part_B for name, part_B in parts.items()},
      'finished': finished_B,
      'parsed': scores.parsed_B,
      'correct': correct_B,
      'length': length_B,
      'row_length': prompt_length_B + length_B,
      'prompt_length': prompt_length_B,
      'marks': drawn.step_mask_PNR.sum(-1).reshape(B),
      'score': drawn.score_PN.reshape(B).astype(np.float64),
      'task': np.repeat([names.index(p.task) for p in problems], N),
      **old,
    }
  )
  return Collected(
    rows,
    _metrics(found, N, names),
    int(found['length'].sum()),
    found['row_length'],
    found['prompt_length'],
  )


def reward_parts(
  phase: PhaseConfig,
  parsed_B: np.ndarray,
  finished_B: np.ndarray,
  length_B: np.ndarray,
  longest: int,
) -> dict[str, np.ndarray]:
  """What is added to the correctness for the policy alone; off: absent.

  Args:
    phase: says which.
    parsed_B: whether a final answer could be read.
    finished_B: False where the length limit has cut the response.
    length_B: tokens of the responses.
    longest: tokens that a response may have.

  Returns:
    By name of the metric reward/<name>, float32.
  """
  parts = {}
  if phase.format_reward:
    parts['format'] = phase.format_reward * (parsed_B & finished_B)
  if phase.truncation_penalty:
    parts['truncated'] = -phase.truncation_penalty * ~finished_B
  if phase.overlong_buffer:
    parts['overlong'] = policy.overlong_penalty_B(
      length_B, longest, phase.overlong_buffer
    )
  return {name: np.asarray(part, np.float32) for name, part in parts.items()}


def _metrics(
  found: dict[str, np.ndarray], samples: int, names: list[str]
) -> dict[str, float]:
  """reward/*, score/*, rollout/*, verify/* from numbers of all rows of a step.

  Counts: verify/failed, responses without a verdict, and of what occurred
  verify/<failure> and verify/<reason>. What has no verdict is not unparsed.
  """
  reward_B, score_B, correct_B = (
    found[name] for name in ('reward', 'score', 'correct')
  )
  groups = len(reward_B) // samples
  zero_variance = policy.zero_variance_groups(
    found['shaped'], np.repeat(np.arange(groups), samples)
  )
  metrics = {
    'reward/mean': float(reward_B.mean()),
    'reward/zero_variance_groups': float(zero_variance.fraction),
    'rollout/truncated': float(1 - found['finished'].mean()),
    'rollout/unparsed': float(
      (~found['parsed'] & (found['failure'] == 0)).mean()
    ),
    'rollout/response_length': float(found['length'].mean()),
    'rollout/marks': float(found['marks'].mean()),
    'score/auc_within': sprm.auc_within(
      score_B.reshape(groups, samples), correct_B.reshape(groups, samples)
    ),
    'score/auc_across': sprm.auc(score_B, correct_B),
    'score/gap': sprm.score_gap(score_B, correct_B),
  }
  for name, part_B in found.items():
    if name.startswith('part/'):
      metrics[f'reward/{name.removeprefix("part/")}'] = float(part_B.mean())
  if any(name.startswith('part/') for name in found):
    metrics['reward/shaped'] = float(found['shaped'].mean())
  counts = count_failures(found['failure'])
  metrics['verify/failed'] = float(sum(counts.values()))
  for name, count in (counts | count_reasons(found['reason'])).items():
    metrics[f'verify/{name}'] = float(count)
  if 'old' in found:  # of earlier policies
    metrics['rollout/old_tokens'] = float(
      found['old'].sum() / found['length'].sum()
    )
  for name, chosen in (('correct', correct_B), ('wrong', ~correct_B)):
    if chosen.any():
      metrics[f'score/mean_{name}'] = float(score_B[chosen].mean())
      metrics[f'score/std_{name}'] = float(score_B[chosen].std())
  for task in sorted(set(found['task'])):
    chosen = found['task'] == task
    metrics[f'reward/{names[task]}'] = float(reward_B[chosen].mean())
  return metrics
