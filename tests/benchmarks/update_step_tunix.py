"""google-tunix's GRPO train step on a Qwen2 of given shapes, timed.

`tests.benchmarks.update_step` runs this file with an interpreter that has
google-tunix; nothing of this project is imported. Model, loss, trainer and jit
are tunix's own, at its defaults (no rematerialisation, no mesh); its learner's
wiring of them is repeated here, because the learner itself needs a tokeniser
and a rollout engine.
"""

import argparse
import importlib.metadata
import json
import time

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.rl import function_registry
from tunix.rl import trainer as rl_trainer
from tunix.rl.grpo import grpo_learner
from tunix.sft import peft_trainer


def _model(D, L, H, K, F, V) -> qwen2.Qwen2:
  """Float32, with its feed-forward weights, which start at 0, drawn."""
  config = qwen2.ModelConfig(
    num_layers=L,
    vocab_size=V,
    embed_dim=D,
    hidden_dim=F,
    num_heads=H,
    head_dim=D // H,
    num_kv_heads=K,
    rope_theta=10_000,
    norm_eps=1e-6,
  )
  model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(1)
  for layer in model.layers:
    for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
      shape = linear.kernel[...].shape
      drawn = rng.normal(scale=shape[0] ** -0.5, size=shape)
      linear.kernel[...] = jax.numpy.asarray(drawn, jax.numpy.float32)
  return model


def _trainer(model, learning_rate: float) -> rl_trainer.Trainer:
  """The actor's trainer as `GRPOLearner` sets it up."""
  # KL estimate and mean over tokens as the others compute them.
  algorithm = grpo_learner.GRPOConfig(
    beta=1e-3, kl_loss_mode='low_var_kl', loss_agg_mode='token-mean'
  )
  algorithm.temperature = 1.0
  loss = function_registry.get_policy_loss_fn(algorithm.policy_loss_fn)
  trainer = rl_trainer.Trainer(
    model,
    optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(learning_rate, weight_decay=0.01),
    ),
    peft_trainer.TrainingConfig(eval_every_n_steps=1),
    custom_checkpoint_metadata_fn=dict,
  )
  trainer.with_loss_fn(
    lambda model, train_example, algo_config: loss(
      model,
      train_example,
      algo_config=algorithm,
      pad_id=-1,  # No token is padding.
      eos_id=-1,
    ),
    has_aux=True,
  )
  trainer.with_gen_model_input_fn(
    lambda x: {'train_example': x, 'algo_config': algorithm}
  )
  return trainer


def run(size, steps: int, learning_rate: float) -> list[float]:
  """Seconds of each train step, after one that compiles."""
  *shape, B, T = size
  V = shape[-1]
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  prompt, completion = tokens[:, : T // 4], tokens[:, T // 4 :]
  log_prob = np.full(completion.shape, -8.0, np.float32)
  example = jax.device_put(
    grpo_learner.TrainExample(
      prompt_ids=prompt,
      prompt_mask=np.ones(prompt.shape, bool),
      completion_ids=completion,
      completion_mask=np.ones(completion.shape, bool),
      advantages=rng.normal(size=B).astype(np.float32),
      ref_per_token_logps=log_prob,
      old_per_token_logps=log_prob,
    )
  )
  trainer = _trainer(_model(*shape), learning_rate)
  step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
  seconds = []
  for _ in range(steps + 1):
    started = time.monotonic()
    out = step(example)
    jax.block_until_ready((out, nnx.state((trainer.model, trainer.optimizer))))
    seconds.append(time.monotonic() - started)
  return seconds[1:]


def main() -> None:
  """Parses, prints the seconds and versions as one line of JSON."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--steps', type=int, required=True)
  parser.add_argument('--learning_rate', type=float, required=True)
  parser.add_argument('size', type=int, nargs=8)
  args = parser.parse_args()
  versions = {
    name: importlib.metadata.version(name) for name in ('google-tunix', 'jax')
  }
  seconds = run(args.size, args.steps, args.learning_rate)
  print(json.dumps({'seconds': seconds, 'versions': versions}))


if __name__ == '__main__':
  main()
