"""Partial rollouts: interrupted or not, the same responses; nothing is lost."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from metastone_jax.checkpoints import CheckpointManager
from metastone_jax.errors import UserError
from metastone_jax.model import init_params
from metastone_jax.training import loop
from metastone_jax.training.loop import collect as collect_lib
from metastone_jax.training.loop import draws, unfinished
from tests.launch import jobs
from tests.training.loop import parts

SAMPLES = 4


def _float64(config):
  config.model.update(dtype='float64', param_dtype='float64')
  # Untrained draws are noise: with more marks some are drawn by chance.
  config.data.step_marks = ('.\n\n', *(f' {i}' for i in range(20)))


def test_interrupted_responses_are_the_uninterrupted_ones():
  """Through a file after each step; one group of five a step, then the rest."""
  with jax.enable_x64(True):
    setup = parts.setup(_float64)
    params = jax.jit(functools.partial(init_params, setup.model_config))(
      jax.random.key(1)
    )
    # Many tokens end a response, as a random model seldom finds the one.
    config = dataclasses.replace(
      setup.train_sampling, more_eos_ids=tuple(range(100, 140))
    )
    problems = setup.problems('train')
    first = 2**31 + 3  # draw numbers wrap around
    groups = collect_lib.new_groups(problems, first, 5, SAMPLES)
    assert [group.request.draw for group in groups] == [3, 4, 5, 6, 7]
    build = functools.partial(draws.Sampler.build, setup, config)
    whole = build(problems=5, samples=SAMPLES).rollout(
      params, [group.request for group in groups]
    )
    sampler = build(problems=5, samples=SAMPLES, partial=True)
    done, begun = {}, 0
    for needed, left in ((1, 4), (1, 3), (1, 2), (2, 0)):
      taken, groups = unfinished.go_on(sampler.engine(params), groups, needed)
      assert (len(taken), len(groups)) == (needed, left)
      done |= {group.index: group for group in taken}
      assert all(group.complete for group in taken)
      begun += sum(len(r.written) > 0 for g in groups for r in g.rest())
      trees = json.loads(json.dumps([group.to_json() for group in groups]))
      groups = [
        unfinished.Group.from_json(tree, group.request, config)
        for tree, group in zip(trees, groups, strict=True)
      ]
    assert begun > 3  # responses that had to go on
    assert sorted(done) == [first + p for p in range(5)]
    found = draws.stack(
      [c for index in sorted(done) for c in done[index].candidates], 5, config
    )
  assert whole.step_mask_PNR.sum() > 5 and whole.finished_PN.any()
  for name in ('token', 'forced', 'step_mask'):
    np.testing.assert_array_equal(
      getattr(found, f'{name}_PNR'), getattr(whole, f'{name}_PNR'), name
    )
  np.testing.assert_array_equal(found.finished_PN, whole.finished_PN)
  np.testing.assert_array_equal(found.length_PN, whole.length_PN)
  for name in ('log_prob_PNR', 'step_logit_PNR', 'score_PN'):
    np.testing.assert_allclose(
      getattr(found, name), getattr(whole, name), atol=1e-11, err_msg=name
    )


def test_a_file_keeps_every_bit():
  setup = parts.setup()
  problems = setup.problems('train')
  (group,) = collect_lib.new_groups(problems, 9, 1, 2)
  texts = [
    [
      parts.written(setup, problems.batch_at(problems.start(), 1)[0][0], x)
      for x in ('cut', 'right')
    ]
  ]
  drawn = parts.rollout(setup, texts, np.random.default_rng(0))
  for candidate in parts.FakeSampler(setup, lambda _: drawn).draw(
    None, [group.request]
  ):
    group = group.extended(candidate)
  (new,) = collect_lib.new_groups(problems, 9, 1, 2)
  half = new.extended(group.candidates[1])
  for held in (new, half, group):
    again = unfinished.Group.from_json(
      json.loads(json.dumps(held.to_json())),
      held.request,
      setup.train_sampling,
    )
    assert again.complete == held.complete
    for one, other in zip(again.candidates, held.candidates, strict=True):
      assert (one is None) == (other is None)
      if one:
        assert (one.number, one.reason) == (other.number, other.reason)
        assert one.last_logit == other.last_logit
        for name in unfinished._ARRAYS:
          a, b = getattr(one, name), getattr(other, name)
          assert a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _partial(config):
  config.phase_order = ('joint',)
  config.sampling.slots = 6
  config.checkpoint.every = 2
  config.phases.joint.update(
    steps=5,
    partial_rollouts=2,
    evaluate_every=0,
    score_loss='bce',
    objective_options=dict(importance_truncation=2.0),
  )


def test_a_run_resumes_with_what_was_unfinished(tmp_path):
  """The same bits; every problem is used once, in one step or another."""
  with parts.one_device():
    recipe = parts.recipe(_partial)
    loop.train(recipe, tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'again')
    # As a preemption before the last step would have left it.
    checkpoints = tmp_path / 'again' / 'checkpoints'
    shutil.rmtree(checkpoints / '5')
    (checkpoints / 'integrity' / '5.json').unlink()
    (tmp_path / 'again' / 'evaluation' / 'joint-signs.npz').unlink()
    with CheckpointManager(checkpoints, read_only=True) as manager:
      extra, step = manager.read_extra()
    loop.train(recipe, tmp_path / 'again')
  assert step == 4 and len(extra['unfinished']) == 2
  # Four steps of four, and what is begun.
  assert extra['problem_position']['index'] == 18
  state, extra, _ = jobs.final_state(tmp_path / 'whole')
  other, other_extra, _ = jobs.final_state(tmp_path / 'again')
  assert extra == other_extra
  assert extra['unfinished'] == [] and extra['problem_position']['index'] == 20
  jax.tree.map(np.testing.assert_array_equal, state, other)
  rows = jobs.metrics_without_times(tmp_path / 'whole')
  assert rows == jobs.metrics_without_times(tmp_path / 'again')
  old = [row['rollout/old_tokens'] for row in rows if 'loss/total' in row]
  assert len(old) == 5 and old[0] == 0
  assert 0 < max(old) < 1


@pytest.mark.parametrize('count', [-1, 5])
def test_a_count_that_cannot_be_is_named(count):
  def edit(config):
    config.phases.joint.partial_rollouts = count

  with pytest.raises(
    UserError, match=rf'joint.partial_rollouts={count} must be between 0'
  ):
    parts.recipe(edit)
