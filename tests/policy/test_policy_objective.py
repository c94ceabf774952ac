"""The GRPO family against loops, micro-batches, and hostile numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastone_jax import policy
from metastone_jax.errors import UserError

CONFIGS = {
  'grpo': policy.grpo(),
  'dr_grpo': policy.dr_grpo(fixed_length=16),
  'dapo': policy.dapo(importance_truncation=1.3),
  'gspo': policy.gspo(clip_low=0.1, clip_high=0.15),
  'gspo_token_mean': policy.gspo(aggregation='token', clip_high=0.05),
  'dual_clip': policy.grpo(dual_clip=1.5, aggregation='sequence'),
}


def random_batch(seed=0, B=8, T=10):
  rng = np.random.default_rng(seed)
  log_prob_BT = -rng.exponential(size=(B, T))
  length_B = rng.integers(1, T + 1, B)
  start_B = rng.integers(0, 3, B)  # prompts: the mask does not start at 0
  index_T = np.arange(T)
  mask_BT = (index_T >= start_B[:, None]) & (index_T < length_B[:, None])
  mask_BT[:, 2] = True
  mask_BT[3] = False  # a filler row
  return dict(
    log_prob_BT=log_prob_BT,
    old_log_prob_BT=log_prob_BT + 0.4 * rng.normal(size=(B, T)),
    advantage_B=rng.normal(size=B),
    mask_BT=mask_BT,
    sampler_log_prob_BT=log_prob_BT + 0.4 * rng.normal(size=(B, T)),
  )


def loop_weights(mask_BT, aggregation, fixed_length):
  """{(b, t): weight} that already includes the division."""
  rows = [b for b in range(len(mask_BT)) if mask_BT[b].any()]
  weights = {}
  for b in rows:
    for t in np.flatnonzero(mask_BT[b]):
      weights[b, t] = {
        'token': 1 / mask_BT.sum(),
        'sequence': 1 / mask_BT[b].sum() / len(rows),
        'sequence_sum_fixed': 1 / (fixed_length or 1) / len(rows),
      }[aggregation]
  return weights


def loop_oracle(batch, config):
  """Token by token; returns the finished numbers."""
  lp, old = batch['log_prob_BT'], batch['old_log_prob_BT']
  mask = batch['mask_BT']
  weights = loop_weights(mask, config.aggregation, config.fixed_length)
  n = len(weights)
  out = dict.fromkeys(
    (
      'policy',
      'clip_fraction',
      'approx_kl',
      'ratio_mean',
      'tis_clipped_fraction',
    ),
    0.0,
  )
  for (b, t), weight in weights.items():
    log_ratio = lp[b, t] - old[b, t]
    if config.ratio == 'sequence':
      log_ratio = np.mean([lp[b, s] - old[b, s] for s in np.where(mask[b])[0]])
    ratio, a = math.exp(log_ratio), batch['advantage_B'][b]
    low, high = 1 - config.clip_low, 1 + config.clip_high
    clipped = min(max(ratio, low), high)
    loss = -min(a * ratio, a * clipped)
    if config.dual_clip is not None and a < 0:
      loss = min(loss, -a * config.dual_clip)
    if config.importance_truncation is not None:
      w = math.exp(old[b, t] - batch['sampler_log_prob_BT'][b, t])
      out['tis_clipped_fraction'] += (w > config.importance_truncation) / n
      loss *= min(w, config.importance_truncation)
    out['policy'] += weight * loss
    out['clip_fraction'] += (-a * clipped > -a * ratio) / n
    out['approx_kl'] += (old[b, t] - lp[b, t]) / n
    out['ratio_mean'] += ratio / n
  return out


@pytest.mark.parametrize('library', [np, jnp])
@pytest.mark.parametrize('name', CONFIGS)
def test_terms_equal_the_loop(name, library):
  config = CONFIGS[name]
  compute = functools.partial(policy.policy_terms, config=config)
  if library is jnp:
    compute = jax.jit(compute)
  with jax.enable_x64(True):
    for seed in range(4):
      batch = random_batch(seed)
      expected = loop_oracle(batch, config)
      assert expected['clip_fraction'] > 0
      terms = compute(**{k: library.asarray(v) for k, v in batch.items()})
      got = {k: float(total / count) for k, (total, count) in terms.items()}
      assert got.keys() == expected.keys()
      for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', CONFIGS)
def test_gradient_equals_finite_differences(name):
  config = CONFIGS[name]
  batch = random_batch(1)
  with jax.enable_x64(True):

    def loss(log_prob_BT):
      total, count = policy.policy_terms(
        **(batch | {'log_prob_BT': log_prob_BT}), config=config
      )['policy']
      return total / count

    got_BT = jax.jit(jax.grad(loss))(jnp.asarray(batch['log_prob_BT']))

  def oracle(log_prob_BT):
    return loop_oracle(batch | {'log_prob_BT': log_prob_BT}, config)['policy']

  step = 1e-6
  expected_BT = np.zeros(got_BT.shape)
  for b, t in np.ndindex(got_BT.shape):
    move_BT = np.zeros(got_BT.shape)
    move_BT[b, t] = step
    up = oracle(batch['log_prob_BT'] + move_BT)
    down = oracle(batch['log_prob_BT'] - move_BT)
    expected_BT[b, t] = (up - down) / (2 * step)
  np.testing.assert_allclose(got_BT, expected_BT, atol=1e-8)
  assert np.abs(expected_BT).max() > 1e-3


def cut_rows(batch, rows):
  for i in range(0, len(batch['mask_BT']), rows):
    yield {k: v[i : i + rows] for k, v in batch.items()}


@pytest.mark.parametrize('name', CONFIGS)
def test_micro_batches_are_one_batch(name):
  config = CONFIGS[name]
  how = dict(aggregation=config.aggregation, fixed_length=config.fixed_length)

  @jax.jit
  def terms_and_gradient(batch):
    def total(log_prob_BT):
      mask_BT = batch['mask_BT']
      terms = policy.policy_terms(
        **(batch | {'log_prob_BT': log_prob_BT}), config=config
      )
      for form in policy.KL_FORMS:
        terms[form] = policy.kl_terms(
          log_prob_BT, batch['sampler_log_prob_BT'], mask_BT, form, **how
        )
      terms['entropy'] = policy.aggregate(-log_prob_BT, mask_BT, **how)
      # One gradient in which each term has its own weight.
      return sum((i + 1) * v[0] for i, v in enumerate(terms.values())), terms

    return jax.grad(total, has_aux=True)(batch['log_prob_BT'])

  with jax.enable_x64(True):
    batch = random_batch(2)
    whole_grad_BT, whole = terms_and_gradient(batch)
    for rows in (1, 4):
      parts = [terms_and_gradient(part) for part in cut_rows(batch, rows)]
      grad_BT = np.concatenate([grad_BT for grad_BT, _ in parts])
      np.testing.assert_allclose(grad_BT, whole_grad_BT, atol=1e-12)
      for key in whole:
        total = sum(terms[key][0] for _, terms in parts)
        count = sum(terms[key][1] for _, terms in parts)
        np.testing.assert_allclose(count, whole[key][1], rtol=1e-12)
        np.testing.assert_allclose(total, whole[key][0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', CONFIGS)
def test_only_the_policy_term_has_a_gradient(name):
  batch = random_batch(3)
  mask_BT = jnp.asarray(batch.pop('mask_BT'))
  batch = {k: jnp.asarray(v, jnp.float32) for k, v in batch.items()}

  def loss_and_metrics(batch):
    terms = policy.policy_terms(**batch, mask_BT=mask_BT, config=CONFIGS[name])
    loss = terms.pop('policy')[0]
    return jnp.stack([loss, sum(total for total, _ in terms.values())])

  jacobian = jax.jit(jax.jacrev(loss_and_metrics))(batch)
  of_log_prob = jacobian.pop('log_prob_BT')
  assert np.abs(of_log_prob[0]).max() > 0
  np.testing.assert_array_equal(of_log_prob[1], np.zeros(mask_BT.shape))
  for of_constant in jacobian.values():
    np.testing.assert_array_equal(of_constant, np.zeros_like(of_constant))


@pytest.mark.parametrize('name', CONFIGS)
def test_padding_never_leaks(name):
  @jax.jit
  def loss_and_gradient(log_prob_BT, rest):
    def loss(log_prob_BT):
      mask_BT = rest['mask_BT']
      terms = policy.policy_terms(log_prob_BT, **rest, config=CONFIGS[name])
      kls = [
        policy.kl_terms(log_prob_BT, rest['old_log_prob_BT'], mask_BT, form)[0]
        for form in policy.KL_FORMS
      ]
      entropy = policy.aggregate(-log_prob_BT, mask_BT)[0]
      return terms['policy'][0] + sum(kls) + entropy

    return jax.value_and_grad(loss)(log_prob_BT)

  def run(batch):
    batch = {
      k: v.astype(np.float32) if k != 'mask_BT' else v for k, v in batch.items()
    }
    return loss_and_gradient(batch.pop('log_prob_BT'), batch)

  batch = random_batch(4)
  clean = run(batch)
  assert np.isfinite(clean[0])
  for garbage in (np.nan, np.inf, -np.inf):
    dirty = dict(batch)
    for key in ('log_prob_BT', 'old_log_prob_BT', 'sampler_log_prob_BT'):
      dirty[key] = np.where(batch['mask_BT'], batch[key], garbage)
    for got, want in zip(run(dirty), clean, strict=True):
      np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize('name', CONFIGS)
def test_huge_ratios_stay_finite_in_float32(name):
  log_prob_BT = jnp.array([[-1.0, -500.0], [-500.0, -1.0]], jnp.float32)
  old_BT = jnp.array([[-500.0, -1.0], [-1.0, -500.0]], jnp.float32)
  mask_BT = jnp.ones((2, 2), bool)

  def loss(lp_BT, advantage_B):
    terms = policy.policy_terms(
      lp_BT,
      old_BT,
      advantage_B,
      mask_BT,
      config=CONFIGS[name],
      sampler_log_prob_BT=old_BT - 200.0,
    )
    kls = [
      policy.kl_terms(lp_BT, old_BT, mask_BT, form)[0]
      for form in policy.KL_FORMS
    ]
    return terms['policy'][0] + sum(kls)

  for sign in (1.0, -1.0):
    value, grad_BT = jax.jit(jax.value_and_grad(loss))(
      log_prob_BT, jnp.array([sign, -sign])
    )
    assert np.isfinite(value)
    assert np.isfinite(grad_BT).all()


def test_on_policy_gradient_is_reinforce():
  # ratio 1: d loss = -A / tokens at every response token.
  batch = random_batch(5)
  log_prob_BT = jnp.asarray(batch['log_prob_BT'])
  grad_BT = jax.jit(jax.grad(policy.policy_loss))(
    log_prob_BT, log_prob_BT, batch['advantage_B'], batch['mask_BT']
  )
  mask_BT = batch['mask_BT']
  expected_BT = -batch['advantage_B'][:, None] * mask_BT / mask_BT.sum()
  np.testing.assert_allclose(grad_BT, expected_BT, rtol=1e-5, atol=1e-8)


def test_empty_mask_is_zero():
  zeros_BT = jnp.zeros((2, 3))
  none_BT = jnp.zeros((2, 3), bool)
  loss, grad_BT = jax.jit(jax.value_and_grad(policy.policy_loss))(
    zeros_BT, zeros_BT, jnp.ones(2), none_BT
  )
  np.testing.assert_array_equal(loss, 0)
  np.testing.assert_array_equal(grad_BT, zeros_BT)
  k3 = jax.jit(policy.k3_kl)(zeros_BT, zeros_BT, none_BT)
  np.testing.assert_array_equal(k3, 0)


def test_sequence_total_replaces_the_count():
  mask_BT = np.ones((3, 2), bool)
  _, denominator = policy.aggregation_weights(
    mask_BT, 'sequence', sequence_total=5
  )
  assert denominator == 5


def test_kl_values_and_gradients():
  lp_T = np.array([-1.0, -2.0, -0.5, -1.0, -40.0, -0.1])
  ref_T = np.array([-1.2, -1.0, -0.5, -15.0, -0.1, -40.0])
  x_T = lp_T - ref_T
  k3_T = np.exp(np.minimum(-x_T, 20)) - 1 + np.clip(x_T, -20, 20)
  inside_T = np.abs(x_T) < 10
  k3_live_T = (np.abs(k3_T) < 10) & (np.abs(x_T) < 20)
  k2_grad_T = np.where(inside_T, x_T, 0)
  expected = {
    'k1': (np.clip(x_T, -10, 10), k2_grad_T),
    'k2': (np.clip(x_T, -10, 10) ** 2 / 2, k2_grad_T),
    'k3': (np.clip(k3_T, -10, 10), np.where(k3_live_T, 1 - np.exp(-x_T), 0)),
  }
  ones = np.ones((1, 6), bool)
  with jax.enable_x64(True):
    for form, (value_T, grad_T) in expected.items():
      kl = functools.partial(policy.token_kl_BT, form=form)
      got_BT = kl(jnp.asarray(lp_T[None]), jnp.asarray(ref_T[None]), ones)
      np.testing.assert_allclose(got_BT[0], value_T, rtol=1e-12, atol=1e-15)
      got_BT = jax.grad(lambda lp, kl=kl: kl(lp, ref_T[None], ones).sum())(
        jnp.asarray(lp_T[None])
      )
      np.testing.assert_allclose(got_BT[0], grad_T, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize('form', ['k1', 'k2'])
def test_k1_and_k2_have_the_gradient_of_the_kl(form):
  # Exact expectation over a small vocabulary, tokens drawn from the policy.
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    logits_V = jnp.asarray(rng.normal(size=7))
    ref_V = jax.nn.log_softmax(jnp.asarray(rng.normal(size=7)))
    p_V = jax.nn.softmax(logits_V)

    def exact(logits_V):
      lp_V = jax.nn.log_softmax(logits_V)
      return (jnp.exp(lp_V) * (lp_V - ref_V)).sum()

    def sampled(logits_V):
      lp_V = jax.nn.log_softmax(logits_V)
      mask = jnp.ones((1, 7), bool)
      kl_V = policy.token_kl_BT(lp_V[None], ref_V[None], mask, form)[0]
      return (p_V * kl_V).sum()

    np.testing.assert_allclose(
      jax.jit(jax.grad(sampled))(logits_V),
      jax.jit(jax.grad(exact))(logits_V),
      atol=1e-12,
    )
    if form == 'k1':
      np.testing.assert_allclose(sampled(logits_V), exact(logits_V), rtol=1e-12)


def test_small_k3_does_not_cancel_in_float32():
  x = 1e-4
  got = policy.k3_kl(
    jnp.full((1, 4), -1.0 + x, jnp.float32),
    jnp.full((1, 4), -1.0, jnp.float32),
    jnp.ones((1, 4)),
  )
  delta = float(np.float32(-1.0 + x) - np.float32(-1.0))
  np.testing.assert_allclose(got, np.expm1(-delta) + delta, rtol=0.05)


def test_sampler_mismatch():
  batch = random_batch(6)
  lp_BT, sampler_BT = batch['log_prob_BT'], batch['sampler_log_prob_BT']
  gap_n = np.abs(lp_BT - sampler_BT)[batch['mask_BT']]
  for library in (np, jnp):
    found = policy.sampler_mismatch_terms(
      *map(library.asarray, (lp_BT, sampler_BT, batch['mask_BT']))
    )
    total, count = found['mean']
    np.testing.assert_allclose(total / count, gap_n.mean(), rtol=1e-5)
    np.testing.assert_allclose(found['max'], gap_n.max(), rtol=1e-5)


def test_presets():
  assert policy.PRESETS.keys() == {'grpo', 'dr_grpo', 'dapo', 'gspo'}
  for make in policy.PRESETS.values():
    hash(make())  # a static argument of jit
    assert make(kl_coefficient=0.5).kl_coefficient == 0.5
  assert policy.dr_grpo().normalise_std is False
  assert policy.dapo().clip_high == 0.28


@pytest.mark.parametrize(
  'bad',
  [
    dict(ratio='word'),
    dict(aggregation='mean'),
    dict(kl_form='k4'),
    dict(clip_low=-0.1),
    dict(clip_low=1.5),
    dict(clip_high=float('nan')),
    dict(dual_clip=1.0),
    dict(importance_truncation=0.0),
    dict(kl_coefficient=-1.0),
    dict(entropy_coefficient=float('inf')),
    dict(fixed_length=0),
  ],
)
def test_bad_config_is_named(bad):
  with pytest.raises(UserError, match=next(iter(bad))):
    policy.ObjectiveConfig(**bad)


def test_missing_inputs_are_named():
  batch = random_batch(0)
  with pytest.raises(UserError, match='fixed_length'):
    policy.policy_terms(**batch, config=policy.dr_grpo())
  batch['sampler_log_prob_BT'] = None
  with pytest.raises(UserError, match='sampler'):
    policy.policy_terms(**batch, config=policy.grpo(importance_truncation=2.0))
  with pytest.raises(UserError, match='aggregation'):
    policy.aggregation_weights(batch['mask_BT'], 'mean')
  with pytest.raises(UserError, match='kl_form'):
    policy.token_kl_BT(1.0, 1.0, 1.0, 'k9')
