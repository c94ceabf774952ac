"""Training rows against what the texts say, in plain Python."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from metastone_jax import sprm
from metastone_jax.errors import UserError
from metastone_jax.model import init_params
from metastone_jax.telemetry import Stopwatch
from metastone_jax.training import step as step_lib
from metastone_jax.training.loop import collect as collect_lib
from metastone_jax.training.loop import draws
from tests.tasks.hostile import Told
from tests.training.loop import parts

KINDS = (
  ('right', 'wrong', 'unparsed', 'cut'),
  ('right', 'right', 'wrong', 'right'),
  ('wrong', 'wrong', 'wrong', 'wrong'),  # the same reward, the same length
  ('right', 'right', 'right', 'right'),
)


@pytest.fixture(scope='module')
def setup():
  return parts.setup()


@pytest.fixture(scope='module')
def problem_batch(setup):
  problems = setup.problems('train')
  return problems.batch_at(problems.start(), 4)


@pytest.fixture(scope='module')
def drawn(setup, problem_batch):
  texts = [
    [parts.written(setup, problem, kind) for kind in kinds]
    for problem, kinds in zip(problem_batch[0], KINDS, strict=True)
  ]
  return parts.rollout(setup, texts, np.random.default_rng(1))


def _collect(setup, problem_batch, drawn, first_draw=0, **changes):
  phase = dataclasses.replace(parts.phase(setup, 'joint'), **changes)

  def write(request):
    p = (request.draw - first_draw) % 2**31
    return jax.tree.map(lambda x: x[p : p + 1], drawn)

  sampler = parts.FakeSampler(setup, write)
  watch = Stopwatch()
  found = collect_lib.collect(
    setup, sampler, 'params', phase, problem_batch, first_draw, watch
  )
  assert set(watch.collect()) == {'time/rollout', 'time/verify'}
  return found, sampler.asked[0]


def test_base_and_demonstration_rows(setup):
  demonstrations = setup.demonstrations()
  batch = demonstrations.batch_at(demonstrations.start(), 6)
  rows = collect_lib.demonstration_rows(batch, 7)
  B, T = batch['tokens_BT'].shape
  assert T == setup.total_length
  for b in range(B):
    length, prompt = int(batch['length_B'][b]), int(batch['prompt_length_B'][b])
    tokens = batch['tokens_BT'][b]
    text = setup.tokenizer.decode(tokens[prompt:length])
    assert text.endswith('<|im_end|>') and '</think>' in text
    for t in range(T):
      assert rows['target_BT'][b, t] == (tokens[t + 1] if t + 1 < T else 0)
      assert rows['position_BT'][b, t] == t
      assert rows['segment_BT'][b, t] == int(t < length)
      # Index t predicts token t + 1: those of the response are learnt.
      assert rows['lm_mask_BT'][b, t] == (prompt <= t + 1 < length)
  np.testing.assert_array_equal(rows['row_B'], np.arange(7, 13))
  np.testing.assert_array_equal(rows['temperature_B'], np.ones(6))
  assert rows['row_B'].dtype == np.uint32
  assert rows['tokens_BT'].dtype == rows['target_BT'].dtype == np.int32


def test_join_rows_fills_what_one_kind_lacks():
  a = {'tokens_BT': np.ones((2, 3), np.int32), 'advantage_B': np.ones(2)}
  b = {
    'tokens_BT': np.full((1, 3), 5, np.int32),
    'lm_mask_BT': np.ones((1, 3), bool),
  }
  joined = collect_lib.join_rows([a, b])
  np.testing.assert_array_equal(joined['tokens_BT'][:, 0], [1, 1, 5])
  np.testing.assert_array_equal(joined['advantage_B'], [1, 1, 0])
  assert joined['lm_mask_BT'].dtype == bool
  np.testing.assert_array_equal(joined['lm_mask_BT'].sum(1), [0, 0, 3])


def test_what_the_sampler_is_asked(setup, problem_batch, drawn):
  first_draw = 2**31 + 5  # draw numbers are int32 and wrap around
  _, (params, requests) = _collect(setup, problem_batch, drawn, first_draw)
  assert params == 'params'
  assert [request.draw for request in requests] == [5, 6, 7, 8]
  _, prompt, length = problem_batch
  for p, request in enumerate(requests):
    assert request.prompt == tuple(prompt[p, : length[p]])
    assert request.candidates == (0, 1, 2, 3)
    assert not request.written and request.max_tokens is None


def test_rows_say_what_was_drawn(setup, problem_batch, drawn):
  found, _ = _collect(setup, problem_batch, drawn, first_draw=12)
  rows = found.rows
  T = setup.total_length
  kinds = [kind for group in KINDS for kind in group]
  for b, kind in enumerate(kinds):
    p, n = divmod(b, 4)
    prompt = problem_batch[1][p, : problem_batch[2][p]].tolist()
    length = int(drawn.length_PN[p, n])
    response = drawn.token_PNR[p, n, :length].tolist()
    ids = prompt + response
    pad = [setup.tokenizer.pad_id] * (T - len(ids))
    np.testing.assert_array_equal(rows['tokens_BT'][b], ids + pad)
    np.testing.assert_array_equal(
      rows['segment_BT'][b], [1] * len(ids) + [0] * len(pad)
    )
    for t in range(T):
      r = t + 1 - len(prompt)  # the response token that index t predicts
      inside = 0 <= r < length
      for field, value, outside in (
        ('policy_mask_BT', inside and not drawn.forced_PNR[p, n, r], False),
        ('step_mask_BT', inside and drawn.step_mask_PNR[p, n, r], False),
        ('sampler_log_prob_BT', inside and drawn.log_prob_PNR[p, n, r], 0.0),
        ('step_logit_BT', inside and drawn.step_logit_PNR[p, n, r], 0.0),
      ):
        assert rows[field][b, t] == (value if inside else outside), field
    assert rows['correct_B'][b] == (kind == 'right')
    assert rows['score_weight_B'][b] == float(kind in ('right', 'wrong'))
  np.testing.assert_array_equal(rows['row_B'], np.arange(16) + 12 * 4)
  np.testing.assert_array_equal(rows['temperature_B'], np.ones(16))
  np.testing.assert_array_equal(
    rows['step_mask_BT'],
    sprm.step_feature_mask(
      rows['tokens_BT'],
      step_ids=setup.train_sampling.step_ids,
      think_start_id=setup.tokenizer.think_start_id,
      think_end_id=setup.tokenizer.think_end_id,
      side='train',
    ),
  )
  assert rows['step_mask_BT'].sum() >= 16  # every text has marks
  assert found.tokens == drawn.length_PN.sum()


def _overlong(length, limit, buffer):
  return -min(max((length - (limit - buffer)) / buffer, 0.0), 1.0)


@pytest.mark.parametrize('buffer', [0, 16])
@pytest.mark.parametrize('objective', ['grpo', 'dr_grpo'])
@pytest.mark.parametrize('drop', [False, True])
def test_advantages(setup, problem_batch, drawn, buffer, objective, drop):
  found, _ = _collect(
    setup,
    problem_batch,
    drawn,
    objective=objective,
    objective_options={'fixed_length': 28},
    overlong_buffer=buffer,
    drop_zero_variance=drop,
  )
  # A cut text is judged by its text: here it would be right.
  reward = np.array([[float(k in ('right', 'cut')) for k in g] for g in KINDS])
  if buffer:
    reward += [
      [_overlong(int(n), 28, buffer) for n in group]
      for group in drawn.length_PN
    ]
  centred = reward - reward.mean(axis=1, keepdims=True)
  std = reward.std(axis=1, ddof=1, keepdims=True)
  expected = centred if objective == 'dr_grpo' else centred / (std + 1e-6)
  np.testing.assert_allclose(
    found.rows['advantage_B'], expected.reshape(-1), atol=2e-6
  )
  constant = np.array([len(set(group)) == 1 for group in reward])
  assert constant.any() and not constant.all()
  assert found.metrics['reward/zero_variance_groups'] == constant.mean()
  response_B = found.rows['policy_mask_BT'].any(axis=1)
  np.testing.assert_array_equal(
    response_B, ~np.repeat(constant, 4) if drop else np.ones(16, bool)
  )


def test_cut_responses_give_no_policy_gradient_where_asked(
  setup, problem_batch, drawn
):
  plain, _ = _collect(setup, problem_batch, drawn)
  found, _ = _collect(setup, problem_batch, drawn, mask_truncated=True)
  cut = np.array([kind == 'cut' for group in KINDS for kind in group])
  assert 0 < cut.sum() < 16 and plain.rows['policy_mask_BT'][cut].any()
  np.testing.assert_array_equal(
    found.rows['policy_mask_BT'],
    plain.rows['policy_mask_BT'] & ~cut[:, None],
  )
  # They stay in the group's mean, and were never in the score loss.
  for name in ('advantage_B', 'score_weight_B'):
    np.testing.assert_array_equal(found.rows[name], plain.rows[name])
  assert not found.rows['score_weight_B'][cut].any()


@pytest.mark.parametrize(('form', 'cut'), [(0.1, 0.0), (0.0, 0.3), (0.1, 0.3)])
def test_reward_parts(setup, problem_batch, drawn, form, cut):
  plain, _ = _collect(setup, problem_batch, drawn, overlong_buffer=0)
  found, _ = _collect(
    setup,
    problem_batch,
    drawn,
    overlong_buffer=0,
    format_reward=form,
    truncation_penalty=cut,
  )
  # Right or wrong: read and not cut. Cut texts are judged by their text.
  worth = {
    'right': 1 + form,
    'wrong': form,
    'unparsed': 0.0,
    'cut': 1 - cut,
  }
  reward = np.array([[worth[kind] for kind in group] for group in KINDS])
  std = reward.std(axis=1, ddof=1, keepdims=True)
  expected = (reward - reward.mean(axis=1, keepdims=True)) / (std + 1e-6)
  np.testing.assert_allclose(
    found.rows['advantage_B'], expected.reshape(-1), atol=2e-6
  )
  # What the score head learns from, and reward/mean, is correctness alone.
  for name in ('correct_B', 'score_weight_B'):
    np.testing.assert_array_equal(found.rows[name], plain.rows[name])
  assert found.metrics['reward/mean'] == plain.metrics['reward/mean']
  kinds = np.array(KINDS)
  shares = {
    'format': form * np.isin(kinds, ('right', 'wrong')).mean(),
    'truncated': -cut * (kinds == 'cut').mean(),
    'shaped': reward.mean(),
  }
  for name, share in shares.items():
    if share:
      np.testing.assert_allclose(found.metrics[f'reward/{name}'], share, 1e-6)
    else:
      assert f'reward/{name}' not in found.metrics
    assert f'reward/{name}' not in plain.metrics


@pytest.mark.parametrize('name', ['format_reward', 'truncation_penalty'])
@pytest.mark.parametrize('value', [-0.1, 1.5])
def test_reward_parts_are_checked(setup, name, value):
  with pytest.raises(UserError, match=f'phases.joint.{name}'):
    dataclasses.replace(parts.phase(setup, 'joint'), **{name: value})


def test_a_response_is_verified_while_others_are_written(
  setup, problem_batch, drawn, monkeypatch
):
  begun = []  # (responses verified so far) whenever a problem's are drawn
  verified = []
  task = setup.mixture.tasks['signs']
  verify = task.verify

  def watched(problem, text):
    verified.append(problem.id)
    return verify(problem, text)

  monkeypatch.setattr(task, 'verify', watched)

  def write(request):
    begun.append(len(verified))
    return jax.tree.map(lambda x: x[request.draw : request.draw + 1], drawn)

  collect_lib.collect(
    setup,
    parts.FakeSampler(setup, write),
    'params',
    parts.phase(setup, 'joint'),
    problem_batch,
    0,
    Stopwatch(),
  )
  assert begun == [0, 4, 8, 12] and len(verified) == 16


def test_failures_of_verifiers_are_counted(problem_batch, drawn):
  """Wrong for the policy, nothing for the score head, never silent."""

  def edit(config):
    config.verify = dict(workers=1, deadline_s=4.0)

  setup = parts.setup(edit)
  said, kinds = (
    {},
    iter(['right:a', 'hang', 'exit:1', 'right:b', 'wrong_for:program/memory']),
  )
  for problem, group in zip(problem_batch[0], KINDS, strict=True):
    for kind in group:
      text = parts.written(setup, problem, kind)
      said.setdefault(setup.chat.canonical(text), next(kinds, 'right:a'))
  task = setup.mixture.tasks['signs']
  task.verifier = Told(said)
  try:
    found, _ = _collect(setup, problem_batch, drawn)
  finally:
    setup.verifiers.close()
  expected = [
    said[setup.chat.canonical(parts.written(setup, problem, kind))]
    for problem, group in zip(problem_batch[0], KINDS, strict=True)
    for kind in group
  ]
  lost = {'hang': 'timeout', 'exit:1': 'crash'}
  counts = {
    name: sum(lost.get(what) == name for what in expected)
    for name in lost.values()
  }
  assert all(counts.values())
  for name, count in counts.items():
    assert found.metrics[f'verify/{name}'] == count
  assert found.metrics['verify/failed'] == sum(counts.values())
  # Judged: its own limits, not the verifier's. And nothing was unparsed.
  assert found.metrics['verify/program/memory'] == sum(
    what.endswith('memory') for what in expected
  )
  assert found.metrics['rollout/unparsed'] == 0
  finished = [kind != 'cut' for group in KINDS for kind in group]
  for b, what in enumerate(expected):
    right = what.startswith('right')
    assert found.rows['correct_B'][b] == (right and finished[b])
    assert found.rows['score_weight_B'][b] == float(
      what not in lost and finished[b]
    )
  assert found.metrics['reward/mean'] == np.mean(
    [what.startswith('right') for what in expected]
  )


def test_a_group_of_one_is_not_dropped(setup, problem_batch, drawn):
  """Its advantage is its reward (SPEC 4), so it has something to teach."""
  one = jax.tree.map(lambda x: x[:, :1], drawn)
  found, _ = _collect(
    setup,
    problem_batch,
    one,
    samples_per_prompt=1,
    overlong_buffer=0,
    drop_zero_variance=True,
  )
  np.testing.assert_allclose(found.rows['advantage_B'], [1, 1, 0, 1], atol=1e-5)
  assert found.metrics['reward/zero_variance_groups'] == 0
  assert found.rows['policy_mask_BT'].any(axis=1).all()


def test_metrics(setup, problem_batch, drawn):
  found, _ = _collect(setup, problem_batch, drawn)
  metrics = found.metrics
  kinds = np.array(KINDS)
  score, right = drawn.score_PN, kinds == 'right'
  pairs = [
    (score[p, i] > score[p, j]) + 0.5 * (score[p, i] == score[p, j])
    for p in range(4)
    for i in range(4)
    for j in range(4)
    if right[p, i] and not right[p, j]
  ]
  everywhere = [
    (a > b) + 0.5 * (a == b) for a in score[right] for b in score[~right]
  ]
  reward = np.isin(kinds, ('right', 'cut')).mean()
  for name, value in {
    'reward/mean': reward,
    'reward/signs': reward,
    'rollout/truncated': (kinds == 'cut').mean(),
    'rollout/unparsed': (kinds == 'unparsed').mean(),
    'verify/failed': 0,
    'rollout/response_length': drawn.length_PN.mean(),
    'rollout/marks': drawn.step_mask_PNR.sum() / 16,
    'score/auc_within': np.mean(pairs),
    'score/auc_across': np.mean(everywhere),
    'score/gap': score[right].mean() - score[~right].mean(),
    'score/mean_correct': score[right].mean(),
    'score/std_correct': score[right].std(),
    'score/mean_wrong': score[~right].mean(),
    'score/std_wrong': score[~right].std(),
  }.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_sampler_and_trainer_agree(problem_batch):
  """The same tokens, log-probs and marks on both sides, at temperature 0.7."""

  def edit(config):
    config.sampling.temperature = 0.7
    # Untrained draws are noise: with more marks some are drawn by chance.
    config.data.step_marks = ('.\n\n', *(f' {i}' for i in range(20)))

  setup = parts.setup(edit)
  params = jax.jit(functools.partial(init_params, setup.model_config))(
    jax.random.key(1)
  )
  found = collect_lib.collect(
    setup,
    draws.Sampler.build(setup, setup.train_sampling, problems=4, samples=4),
    params,
    parts.phase(setup, 'joint'),
    problem_batch,
    0,
    Stopwatch(),
  )
  rows = found.rows
  np.testing.assert_array_equal(
    rows['temperature_B'], np.full(16, 0.7, np.float32)
  )
  assert rows['policy_mask_BT'].sum() == found.tokens
  assert rows['step_mask_BT'].sum() > 4
  np.testing.assert_array_equal(
    rows['step_mask_BT'],
    sprm.step_feature_mask(
      rows['tokens_BT'],
      step_ids=setup.train_sampling.step_ids,
      think_start_id=setup.tokenizer.think_start_id,
      think_end_id=setup.tokenizer.think_end_id,
      side='train',
    )
    & rows['policy_mask_BT'],
  )
  mask = rows['policy_mask_BT']
  trainer = jax.jit(
    functools.partial(
      step_lib.log_prob_pass,
      model_config=setup.model_config,
      num_micro_batches=2,
      sharder=setup.sharder,
    )
  )(
    params,
    {
      name: rows[name]
      for name in (
        'tokens_BT',
        'target_BT',
        'position_BT',
        'segment_BT',
        'temperature_B',
      )
    }
    | {'step_mask_BT': mask},
  )
  assert (rows['sampler_log_prob_BT'][mask] < 0).all()
  for field, name, where in (
    ('sampler_log_prob_BT', 'log_prob_BT', mask),
    # The sampler scores marks alone.
    ('step_logit_BT', 'step_logit_BT', rows['step_mask_BT']),
  ):
    np.testing.assert_allclose(
      rows[field][where], np.asarray(trainer[name])[where], atol=2e-5
    )


def test_slots_are_checked():
  def edit(config):
    config.sampling.slots = -1

  with pytest.raises(UserError, match='slots=-1 must be at least'):
    parts.setup(edit)
