"""The engine's programs on one host's devices, lowered for a recipe.

  prefill  a call that reads prompts: as many of the longest as the engine
           reads at a time
  decode   a chunk of turns: one token each of every slot, with columns for the
           longest response

The engine's slots and its prompt store live as long as a rollout: arguments of
`decode`, which writes them in place, and beside `prefill`.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from kernels.attention import PLAIN
from kernels.decode_attention import choose as choose_decode_attention
from metastone_jax.compile_check import accounting
from metastone_jax.compile_check.plan import Plan, attention_kind
from metastone_jax.compile_check.program import Program, compute_params
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling import SamplingConfig
from metastone_jax.sampling.engine.programs import Programs, jitted, placement
from metastone_jax.sampling.engine.shape import EngineConfig, bucket


@dataclasses.dataclass(frozen=True)
class Shapes:
  """What a host's engine is like during a rollout.

  Attributes:
    engine: its configuration.
    shards: devices that share slots and rows.
    rows: of the prompt store.
    positions: of a prompt.
    columns: of a slot.
    read: prompts that a call of prefill reads.
  """

  engine: EngineConfig
  shards: int
  rows: int
  positions: int
  columns: int
  read: int

  @classmethod
  def of(cls, plan: Plan) -> 'Shapes':
    """Of a recipe on a machine."""
    engine = plan.engine
    positions = bucket(engine.positions)
    rows = engine.num_prompts or engine.num_slots // (engine.group or 1)
    at_a_time = max(1, engine.prefill_tokens // positions)
    return cls(
      engine=engine,
      shards=plan.shards,
      rows=rows,
      positions=positions,
      columns=engine.columns,
      read=bucket(min(at_a_time, rows), 1),
    )


def _programs(plan: Plan, shapes: Shapes, sharder: Sharder) -> Programs:
  draw = plan.recipe.sampling
  # Which ids end a step or a response changes no shape.
  sampling = SamplingConfig(
    max_response_length=plan.recipe.data.max_response_length,
    eos_id=1,
    pad_id=0,
    step_ids=(2,),
    think_start_id=3,
    think_end_id=4,
    temperature=draw.temperature,
    top_k=draw.top_k,
    top_p=draw.top_p,
  )
  return Programs(
    plan.model,
    sampling,
    sharder,
    shapes.engine.turns,
    shapes.shards,
    shapes.engine.prefill_tokens,
    bool(shapes.engine.group),
  )


def _abstract_slots(programs: Programs, shapes: Shapes):
  """`Slots` as they lie on the devices."""
  sharder = programs.sharder
  slots, _ = jax.eval_shape(
    functools.partial(
      programs.empty,
      shapes.engine.num_slots,
      shapes.rows,
      shapes.positions,
      shapes.columns,
    )
  )
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharder.sharding(placement(x.ndim), x.shape)
    ),
    slots,
  )


def _bytes_a_device(tree) -> int:
  """Of arrays with shardings; keys of random numbers are too small to count."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
    if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  )


def _decode_attention(plan: Plan, shapes: Shapes) -> str:
  """The kind of decode attention that the model gets."""
  model, tensor = plan.model, plan.rollout_mesh['tensor']
  heads = tensor if model.num_kv_heads % tensor == 0 else 1
  a_token = accounting.cache_bytes_a_token(model) // model.num_layers
  tokens = (
    shapes.rows * shapes.positions + shapes.engine.num_slots * shapes.columns
  )
  return choose_decode_attention(
    model.decode_attention,
    platform='tpu' if plan.target.chip.platform == 'tpu' else 'gpu',
    head_width=model.head_width,
    dtype=jnp.dtype(model.dtype),
    cache_bytes=a_token * tokens // (shapes.shards * heads),
  )


def engine_programs(plan: Plan, devices: list) -> list[Program]:
  """Prefill and decode.

  Args:
    plan: the recipe on the machine.
    devices: of one of its hosts, described.
  """
  model, shapes = plan.model, Shapes.of(plan)
  B, C = shapes.engine.num_slots, shapes.engine.turns
  sharder = Sharder(make_mesh(plan.rollout_mesh, devices))
  programs = _programs(plan, shapes, sharder)
  run = jitted(programs)
  params = compute_params(model, sharder, unstacked=True)
  slots = _abstract_slots(programs, shapes)
  integer = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
  split = dict(devices=len(devices), tensor=plan.rollout_mesh['tensor'])
  waiting = plan.state_bytes + plan.reference_bytes

  def lower_prefill():
    prompts = integer((shapes.read, shapes.positions))
    return run['prefill'].lower(params, prompts, integer((shapes.read,)))

  def lower_decode():
    return run['chunk'].lower(params, slots, integer(()))

  samples = plan.phase.samples_per_prompt
  drawn = plan.responses_per_host, B
  step = functools.partial(accounting.decode_step, model, slots=B, **split)
  work = step(
    # Candidates of one problem are written together.
    prompts=min(plan.problems_per_host, -(-B // samples)),
    prompt=plan.recipe.data.max_prompt_length / 2,
    context=plan.lengths.mean_context(*drawn),
  )
  full = step(
    prompts=shapes.rows, prompt=shapes.positions, context=shapes.columns
  )
  return [
    Program(
      name='prefill',
      lower=lower_prefill,
      devices=len(devices),
      work=accounting.prefill(
        model, prompts=shapes.read, length=shapes.positions, **split
      ),
      times=math.ceil(plan.problems_per_host / shapes.read),
      attention=attention_kind(plan, shapes.positions, PLAIN, split=1),
      resident=waiting + _bytes_a_device(slots),
    ),
    Program(
      name='decode',
      lower=lower_decode,
      devices=len(devices),
      work=work * C,
      times=plan.lengths.turns(*drawn) / C,
      attention=_decode_attention(plan, shapes),
      resident=waiting,
      turns=C,
      full_turn_bytes=full.memory_bytes,
    ),
  ]
