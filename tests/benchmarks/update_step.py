"""One GRPO + SPR update: ours against two peers, same model and shapes.

  python -m tests.benchmarks.update_step [--repeats=5 --steps=3]
    [--tunix_python=PATH]
  python -m tests.benchmarks.update_step --accelerator [--repeats=5 --steps=3]

PyTorch: Hugging Face's Qwen2 with the released loss as the released trainer
computes it: full logits, clipped policy loss with the advantage, k3 KL,
entropy, the filtered process-reward loss on `hidden_states[-2]`, gradient
clipping and AdamW.

google-tunix: its own Qwen2, GRPO loss, trainer and jit, at its defaults; needs
PATH, a Python with google-tunix (`pip install google-tunix` in a venv of its
own). It does less work than ours: no score head, no process-reward loss, and
the entropy is a metric without a gradient. Its logits are of the whole row,
like ours, but it cuts them to the completion before log-probs and entropy,
which ours computes at every place.

Float32, CPU, all cores, a step alone, after one that compiles. All take turns
in processes of their own; the ratios are of medians.

With --accelerator the shapes of the 1.5B model on one device of this machine,
bfloat16 activations, every block recomputed in the backward pass. Ours has
float32 masters and moments, as it trains; PyTorch's weights and moments are
bfloat16, as the released trainer keeps them (less to read and write), and its
attention is the one transformers takes (sdpa). `xla` is ours without a kernel.
MFU counts the arithmetic of forward and backward passes, nothing twice, over
the device's bf16 peak.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

SIZES = {
  # name: width, layers, heads, key/value heads, feed-forward, vocabulary, B, T
  'small': (256, 4, 4, 2, 768, 4096, 16, 256),
  'wide vocabulary': (256, 4, 4, 2, 768, 32_768, 8, 256),
}
# Of --accelerator: bfloat16, everything recomputed.
LARGE = {'1.5B': (1536, 28, 12, 2, 8960, 151_936, 4, 2048)}
LEARNING_RATE = 1e-6


def _ours(size, steps: int, kind: str = 'auto') -> list[float]:
  """Seconds of each update, after one that compiles.

  Args:
    size: of SIZES or LARGE.
    steps: that are timed.
    kind: of every operator.
  """
  import jax
  import numpy as np

  from metastone_jax import policy
  from metastone_jax.model import ModelConfig
  from metastone_jax.parallel import Sharder
  from metastone_jax.training import optimiser, state, step

  D, L, H, K, F, V, B, T = size
  config = ModelConfig(
    vocab_size=V,
    width=D,
    num_layers=L,
    num_heads=H,
    num_kv_heads=K,
    head_width=D // H,
    feed_forward=F,
    attention=kind,
    token_log_prob=kind,
    scoring_head=kind,
    **(dict(dtype='bfloat16', remat='full') if size in LARGE.values() else {}),
  )
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  mask = np.arange(T)[None] >= T // 4
  batch = jax.device_put(
    {
      'tokens_BT': tokens,
      'target_BT': np.roll(tokens, -1, axis=1),
      'position_BT': np.tile(np.arange(T, dtype=np.int32), (B, 1)),
      'segment_BT': np.ones((B, T), np.int32),
      'row_B': np.arange(B, dtype=np.uint32),
      'temperature_B': np.ones(B, np.float32),
      'policy_mask_BT': np.broadcast_to(mask, (B, T)).copy(),
      'advantage_B': rng.normal(size=B).astype(np.float32),
      'ref_log_prob_BT': np.full((B, T), -8.0, np.float32),
      'old_log_prob_BT': np.full((B, T), -8.0, np.float32),
      'step_mask_BT': rng.random((B, T)) < 0.05,
      'step_logit_BT': rng.normal(size=(B, T)).astype(np.float32),
      'correct_B': np.arange(B) % 2 == 0,
      'score_weight_B': np.ones(B, np.float32),
    }
  )
  opt = optimiser.OptimiserConfig()
  update = jax.jit(
    lambda state, batch, rates, seed: step.update(
      state,
      batch,
      rates,
      seed,
      model_config=config,
      opt_config=opt,
      config=step.UpdateConfig(
        objective=policy.grpo(kl_coefficient=1e-3, entropy_coefficient=1e-3)
      ),
      sharder=Sharder(),
    ),
    donate_argnums=0,
  )
  current = state.init_state(config, opt, 0, Sharder())
  rates = jax.device_put(
    {name: np.float32(LEARNING_RATE) for name in ('backbone', 'head')}
  )
  seconds = []
  for _ in range(steps + 1):
    started = time.monotonic()
    current, _ = update(current, batch, rates, np.uint32(0))
    jax.block_until_ready(current)
    seconds.append(time.monotonic() - started)
  return seconds[1:]


def _torch(size, steps: int) -> list[float]:
  """The same in PyTorch, as the released trainer computes it."""
  import torch
  import transformers

  D, L, H, K, F, V, B, T = size
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=V,
    hidden_size=D,
    num_hidden_layers=L,
    num_attention_heads=H,
    num_key_value_heads=K,
    intermediate_size=F,
    tie_word_embeddings=False,
    use_cache=False,
  )
  model = transformers.Qwen2ForCausalLM(config)
  large = size in LARGE.values()
  if large:
    torch.set_default_device('cuda')
    model = model.to(device='cuda', dtype=torch.bfloat16).train()
    model.gradient_checkpointing_enable()
  head = torch.nn.Sequential(
    torch.nn.Linear(D, 2 * D),
    torch.nn.ReLU(),
    torch.nn.Dropout(0.5),
    torch.nn.Linear(2 * D, 1),
  ).to(model.dtype)
  groups = [list(model.parameters()), list(head.parameters())]
  optimisers = [
    torch.optim.AdamW(group, lr=LEARNING_RATE, weight_decay=0.01)
    for group in groups
  ]
  tokens = torch.randint(0, V, (B, T))
  target = torch.roll(tokens, -1, 1)
  mask = (torch.arange(T)[None] >= T // 4).expand(B, T).float()
  advantage = torch.randn(B)[:, None]
  old = ref = torch.full((B, T), -8.0)
  step_mask = torch.rand(B, T) < 0.05
  correct = (torch.arange(B) % 2 == 0).float()[:, None].expand(B, T)
  seconds = []
  for _ in range(steps + 1):
    started = time.monotonic()
    out = model(tokens, output_hidden_states=True)
    log_p = torch.log_softmax(out.logits.float(), -1)
    log_prob = log_p.gather(-1, target[..., None])[..., 0]
    entropy = -(log_p.exp() * log_p).sum(-1)
    ratio = torch.exp(log_prob - old)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    policy = torch.maximum(-advantage * ratio, -advantage * clipped)
    gap = torch.clamp(ref - log_prob, -20, 20)
    kl = torch.clamp(torch.exp(gap) - gap - 1, -10, 10)
    loss = ((policy + 1e-3 * kl - 1e-3 * entropy) * mask).sum() / mask.sum()
    feature = out.hidden_states[-2]
    z = head(feature.detach() + 1e-4 * (feature - feature.detach()))[..., 0]
    z = z.float()
    kept = step_mask & ((z > 0) == (correct > 0))
    positive = (kept & (correct > 0)).sum() + 1
    negative = (kept & (correct == 0)).sum() + 1
    weight = torch.where(
      correct > 0,
      1.5 * negative / (positive + negative),
      positive / (positive + negative),
    )
    weight = weight * kept
    bce = torch.nn.functional.binary_cross_entropy_with_logits(
      z, correct, reduction='none'
    )
    loss = loss + (weight * bce).sum() / (weight.sum() + 1e-5)
    loss.backward()
    for group, optimiser in zip(groups, optimisers, strict=True):
      torch.nn.utils.clip_grad_norm_(group, 1.0)
      optimiser.step()
      optimiser.zero_grad()
    if large:
      torch.cuda.synchronize()
    seconds.append(time.monotonic() - started)
  return seconds[1:]


FORMS = {
  'ours': (_ours, ('jax',)),
  'xla': (functools.partial(_ours, kind='xla'), ('jax',)),
  'torch': (_torch, ('torch', 'transformers')),
}


def _mfu(size, seconds: float, device: str) -> str:
  """Share of the device's bf16 peak."""
  from metastone_jax.model import ModelConfig
  from tests.benchmarks import chips

  D, L, H, K, F, V, B, T = size
  config = ModelConfig(V, D, L, H, K, D // H, F)
  flops = 3 * config.forward_flops(B * T, (T + 1) / 2)
  _, chip = chips.chip_of(device)
  return f', MFU {100 * flops / seconds / chip.flops:.1f} %'


def _device(form: str) -> str:
  """What the form computed on."""
  if form == 'torch':
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
  import jax

  return jax.devices()[0].device_kind


def _run(form: str, name: str, steps: int, tunix_python: str) -> dict:
  """Seconds and versions that a process of its own found."""
  if form == 'tunix':
    script = pathlib.Path(__file__).with_name('update_step_tunix.py')
    command = [tunix_python, str(script), f'--learning_rate={LEARNING_RATE}']
    command += [f'--steps={steps}', *map(str, SIZES[name])]
  else:
    command = [sys.executable, '-m', 'tests.benchmarks.update_step']
    command += [f'--steps={steps}', '--one', form, name]
  done = subprocess.run(
    command,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'}
    | ({} if name in LARGE else {'JAX_PLATFORMS': 'cpu'}),
  )
  return json.loads(done.stdout.splitlines()[-1])


def _row(form: str, found: list[dict], ours: float, size) -> str:
  """One line of the table: the medians, the ratio, the versions."""
  seconds = [second for one in found for second in one['seconds']]
  median = statistics.median(seconds)
  ratio = '' if form == 'ours' else f', {form} / ours {median / ours:.2f}'
  versions = ', '.join(f'{k} {v}' for k, v in found[0]['versions'].items())
  if size in LARGE.values():
    device = found[0]['device']
    ratio += f'{_mfu(size, median, device)} of {device}'
  return (
    f'  {form:5} {median:.3f} s (least {min(seconds):.3f}){ratio} [{versions}]'
  )


def main() -> None:
  """Parses, lets all take turns, prints the ratios."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument(
    '--accelerator', action='store_true', help='the shapes of 1.5B, on one'
  )
  parser.add_argument(
    '--tunix_python', default='', help='a Python that has google-tunix'
  )
  parser.add_argument('--one', nargs=2, default=None, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    run, packages = FORMS[args.one[0]]
    seconds = run((SIZES | LARGE)[args.one[1]], args.steps)
    versions = {name: importlib.metadata.version(name) for name in packages}
    device = _device(args.one[0])
    found = {'seconds': seconds, 'versions': versions, 'device': device}
    print(json.dumps(found))
    return
  forms = [form for form in FORMS if args.accelerator or form != 'xla']
  if args.accelerator and args.tunix_python:
    parser.error('--accelerator runs without tunix')
  if args.tunix_python:
    if not shutil.which(args.tunix_python):
      parser.error(f'--tunix_python={args.tunix_python} is no program')
    forms.append('tunix')
    print(
      'tunix has no score head and no entropy term (ours does more work a '
      'step); its log-probs are of the completion alone, ours of every place, '
      'its logits of the whole row as ours'
    )
  elif not args.accelerator:
    print('tunix is not run: give --tunix_python, a Python with google-tunix')
  for name, size in (LARGE if args.accelerator else SIZES).items():
    found = {form: [] for form in forms}
    for _ in range(args.repeats):
      for form in forms:
        found[form].append(_run(form, name, args.steps, args.tunix_python))
    D, L, H, K, F, V, B, T = size
    print(f'{name} (width {D}, {L} layers, vocabulary {V}, {B} rows of {T}):')
    ours = statistics.median(s for one in found['ours'] for s in one['seconds'])
    for form in forms:
      print(_row(form, found[form], ours, size), flush=True)


if __name__ == '__main__':
  main()
