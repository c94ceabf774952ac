"""Every kind and layout of attention against the plain form, on 8 devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from kernels.attention import (
  PLAIN,
  Layout,
  Split,
  attention,
  attention_to_past,
)
from kernels.attention.op import choose
from kernels.attention.reference import attention as reference

B, T, H, K, h = 2, 512, 4, 2, 128
LAYOUTS = {
  'plain': PLAIN,
  'packed': Layout(packed=True),
  'zigzag': Layout(packed=True, zigzag=2),
  'shared_prompt': Layout(prompt_length=128, response_length=128),
  'zigzag_shared_prompt': Layout(
    zigzag=2, prompt_length=128, response_length=128
  ),
}


def _segments(layout: Layout) -> np.ndarray:
  """(B, T) in stored order, padding at the end of what it pads."""
  segment = np.zeros((B, T), np.int32)
  if layout.prompt_length:
    S, R = layout.prompt_length, layout.response_length
    segment[:, : S - 5] = 1
    for start, length in ((S, R), (S + R, 40), (S + 2 * R, 1)):
      segment[:, start : start + length] = 1
  elif layout.packed:
    segment[0, :200], segment[0, 200:450] = 1, 2
    segment[1, :30], segment[1, 30:31], segment[1, 31:] = 5, 3, 4
  else:
    segment[0, :450], segment[1, :] = 1, 1
  return segment[:, layout.places(T)]


def _brute_force_mask(layout: Layout, segment: np.ndarray) -> np.ndarray:
  """bool (B, T, T), query by query and key by key."""
  place = layout.places(T)
  allowed = np.zeros((B, T, T), bool)
  S, R = layout.prompt_length, layout.response_length
  for t in range(T):
    for s in range(T):
      if place[s] > place[t]:
        continue
      if S and place[s] >= S and (place[s] - S) // R != (place[t] - S) // R:
        continue
      allowed[:, t, s] = (segment[:, s] == segment[:, t]) & (segment[:, s] > 0)
  return allowed


@functools.cache
def _case(name: str):
  """(q, k, v, segment, weight, value and gradients of the plain form)."""
  layout = LAYOUTS[name]
  rng = np.random.default_rng(0)
  q, k, v = (
    rng.normal(size=(B, T, heads, h)).astype(np.float32) for heads in (H, K, K)
  )
  segment = _segments(layout)
  real = (segment > 0)[..., None, None]
  weight = rng.normal(size=q.shape).astype(np.float32) * real
  mask = _brute_force_mask(layout, segment)
  out, grads = _value_and_grads(
    lambda q, k, v: reference(q, k, v, jnp.asarray(mask)), q, k, v, weight
  )
  return q, k, v, segment, weight, real, out, grads


def _value_and_grads(function, q, k, v, weight):
  @jax.jit
  def both(q, k, v):
    out, vjp = jax.vjp(function, q, k, v)
    return out, vjp(jnp.asarray(weight))

  return jax.device_get(both(q, k, v))


def _check(name, tolerance=2e-5, **options):
  q, k, v, segment, weight, real, want, want_grads = _case(name)
  got, grads = _value_and_grads(
    lambda q, k, v: attention(
      q, k, v, jnp.asarray(segment), layout=LAYOUTS[name], **options
    ),
    q,
    k,
    v,
    weight,
  )
  assert np.isfinite(got).all()
  np.testing.assert_allclose(got * real, want * real, atol=tolerance)
  for grad, want_grad in zip(grads, want_grads, strict=True):
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad, want_grad, atol=10 * tolerance)


def _mesh(fsdp: int, sequence: int, tensor: int) -> Mesh:
  devices = np.array(jax.devices()[: fsdp * sequence * tensor])
  return Mesh(
    devices.reshape(fsdp, sequence, tensor),
    ('fsdp', 'sequence', 'tensor'),
    axis_types=(AxisType.Auto,) * 3,
  )


@pytest.mark.parametrize('name', LAYOUTS)
def test_blocks_of_queries_are_the_plain_form(name, monkeypatch):
  monkeypatch.setattr('kernels.attention.op._XLA_BLOCK', 96)
  _check(name, kind='xla')


@pytest.mark.parametrize('name', LAYOUTS)
def test_splash_is_the_plain_form(name):
  _check(name, kind='splash', interpret=True)


@pytest.mark.parametrize('name', ['plain', 'packed'])
def test_triton_is_the_plain_form(name):
  _check(name, kind='triton', interpret=True)


@pytest.mark.parametrize('kind', ['splash', 'xla'])
@pytest.mark.parametrize('name', LAYOUTS)
def test_split_over_devices_is_the_plain_form(name, kind):
  mesh = _mesh(2, 2, 2)
  split = Split(mesh, ('fsdp',), ('sequence',), ('tensor',))
  _check(name, kind=kind, split=split, interpret=True)


def test_more_devices_than_key_value_heads():
  split = Split(_mesh(1, 2, 4), (), ('sequence',), ('tensor',))
  _check('packed', kind='splash', split=split, interpret=True)


def test_zigzag_gives_every_device_the_same_work():
  layout = Layout(zigzag=4)
  places = layout.places(64).reshape(4, -1)
  assert sorted(places.reshape(-1)) == list(range(64))
  work = [int((row + 1).sum()) for row in places]
  assert len(set(work)) == 1, work


def test_auto_picks_by_platform_layout_and_shape():
  common = dict(length=4096, head_width=128, dtype=jnp.bfloat16)
  packed, split = LAYOUTS['packed'], LAYOUTS['zigzag']
  assert choose('auto', platform='tpu', layout=split, **common) == 'splash'
  assert choose('auto', platform='cuda', layout=PLAIN, **common) == 'cudnn'
  assert choose('auto', platform='cuda', layout=packed, **common) == 'triton'
  assert (
    choose('auto', platform='cuda', layout=split, shards=2, **common) == 'xla'
  )
  assert choose('auto', platform='cpu', layout=PLAIN, **common) == 'xla'
  short = {**common, 'length': 80}
  assert choose('auto', platform='tpu', layout=PLAIN, **short) == 'xla'
  # The Triton kernel has whole blocks; float32 rows are of small models.
  assert choose('auto', platform='cuda', layout=packed, **short) == 'xla'
  exact = {**common, 'dtype': jnp.float32}
  assert choose('auto', platform='cuda', layout=packed, **exact) == 'xla'
  assert choose('splash', platform='cpu', layout=PLAIN, **common) == 'splash'


def test_what_a_kind_cannot_do_is_refused():
  q, k, v, segment, *_ = _case('zigzag')
  layout = LAYOUTS['zigzag']
  with pytest.raises(ValueError, match='triton.*cannot do'):
    attention(q, k, v, segment, layout=layout, kind='triton')
  with pytest.raises(ValueError, match='no segments'):
    attention(q, k, v, segment, layout=LAYOUTS['packed'], kind='cudnn')
  with pytest.raises(ValueError, match='multiple of 128'):
    cut = slice(None), slice(100)
    attention(q[cut], k[cut], v[cut], segment[cut], kind='splash')
  with pytest.raises(ValueError, match='multiple of 64'):
    attention(q[cut], k[cut], v[cut], segment[cut], kind='triton')
  with pytest.raises(ValueError, match='do not divide'):
    Layout(zigzag=2).places(514)
  with pytest.raises(ValueError, match='whole responses'):
    Layout(prompt_length=4, response_length=3).places(9)
  with pytest.raises(ValueError, match='both'):
    Layout(prompt_length=4)


@pytest.mark.parametrize('mesh', [None, (2, 2)], ids=['one', 'mesh'])
def test_pieces_are_the_whole_row(mesh):
  """Each piece against what was read before; what lies behind is rubbish."""
  q, k, v, segment, _, real, want, _ = _case('plain')
  split = None
  if mesh is not None:
    devices = np.array(jax.devices()[:4]).reshape(mesh)
    split = Split(
      Mesh(devices, ('b', 'h'), axis_types=(AxisType.Auto,) * 2),
      batch=('b',),
      heads=('h',),
    )
  piece = T // 4
  read = jax.jit(functools.partial(attention_to_past, split=split))
  got = []
  for start in range(0, T, piece):
    past_k, past_v = k.copy(), v.copy()
    past_k[:, start + piece :] = past_v[:, start + piece :] = 1e3
    part = q[:, start : start + piece]
    got.append(read(part, past_k, past_v, segment, np.int32(start)))
  np.testing.assert_allclose(
    np.concatenate(got, axis=1) * real, want * real, atol=2e-5
  )
