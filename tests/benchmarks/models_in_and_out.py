"""Peak memory and time of ingest and export, beside transformers, in one run.

  python -m tests.benchmarks.models_in_and_out [--gigabytes=2]

Makes a random Qwen2 folder in bfloat16, then in processes of their own:
`launch.ingest`, `launch.export`, and transformers' from_pretrained and
save_pretrained of the same folder. Peak memory is the kernel's ru_maxrss. On a
CPU the "devices" are the same memory, so the model itself is in the peak.
"""

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import ml_dtypes
import numpy as np

from metastone_jax.checkpoints.huggingface.config import write_config
from metastone_jax.checkpoints.huggingface.names import backbone_tensors
from metastone_jax.checkpoints.huggingface.safetensors_files import write_file
from metastone_jax.checkpoints.huggingface.source import TensorInfo
from metastone_jax.model import ModelConfig
from metastone_jax.telemetry.files import write_json_atomic

ROOT = pathlib.Path(__file__).resolve().parents[2]

_PEER = """
import sys, time
import torch
from transformers import AutoModelForCausalLM
started = time.monotonic()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
# The files are mapped: touch every parameter, as a first use would.
sum(float(p.sum()) for p in model.parameters())
loaded = time.monotonic()
model.save_pretrained(sys.argv[2])
print(f'{loaded - started:.1f} {time.monotonic() - loaded:.1f}')
"""


def make_folder(folder: pathlib.Path, gigabytes: float) -> float:
  """A random model of about that size; returns its real size in GB."""
  shape = dict(
    vocab_size=32_000,
    width=2048,
    num_heads=16,
    num_kv_heads=4,
    head_width=128,
    feed_forward=8192,
  )
  one = ModelConfig(num_layers=2, **shape)
  block = (
    ModelConfig(num_layers=3, **shape).num_backbone_parameters
    - one.num_backbone_parameters
  )
  rest = one.num_backbone_parameters - 2 * block
  layers = max(2, round((gigabytes * 1e9 / 2 - rest) / block))
  config = ModelConfig(num_layers=layers, **shape)
  dtype = np.dtype(ml_dtypes.bfloat16)
  tensors = list(backbone_tensors(config))
  rng = np.random.default_rng(0)
  write_file(
    folder / 'model.safetensors',
    {tensor.name: TensorInfo(tensor.shape, dtype) for tensor in tensors},
    (
      (0.02 * rng.standard_normal(tensor.shape, np.float32)).astype(dtype)
      for tensor in tensors
    ),
  )
  write_json_atomic(folder / 'config.json', write_config(config, 'bfloat16'))
  return (folder / 'model.safetensors').stat().st_size / 1e9


def measured(*command: str) -> tuple[float, float, str]:
  """(seconds, peak GB, stdout) of a process."""
  started = time.monotonic()
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    env=dict(os.environ, JAX_PLATFORMS='cpu'),
    stdout=subprocess.PIPE,
    text=True,
  )
  output = process.stdout.read()
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(f'{" ".join(command)} failed with status {status}')
  return time.monotonic() - started, usage.ru_maxrss / 1e6, output


def main() -> None:
  """Parses, runs, prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--gigabytes', type=float, default=2.0)
  parser.add_argument('--folder', default=None, help='for the files')
  args = parser.parse_args()
  root = pathlib.Path(tempfile.mkdtemp(dir=args.folder))
  try:
    source = root / 'source'
    source.mkdir()
    size = make_folder(source, args.gigabytes)
    largest = 32_000 * 2048 * 2 / 1e9
    print(f'model: {size:.2f} GB, its largest tensor {largest:.2f} GB')
    python = sys.executable
    rows = [
      (
        'launch.ingest',
        measured(
          python,
          '-m',
          'launch.ingest',
          f'--source={source}',
          f'--out={root / "ours"}',
        ),
      ),
      (
        'launch.export',
        measured(
          python,
          '-m',
          'launch.export',
          f'--checkpoint={root / "ours"}',
          f'--out={root / "export"}',
        ),
      ),
      (
        'transformers load + save',
        measured(python, '-c', _PEER, str(source), str(root / 'theirs')),
      ),
    ]
    for name, (seconds, peak, output) in rows:
      print(
        f'{name}: {seconds:.1f} s, peak {peak:.2f} GB '
        f'({peak / size:.2f} x the model); {output.strip()}'
      )
    base = measured(python, '-c', 'import jax, metastone_jax.training.loop')
    print(f'an empty process with the imports: peak {base[1]:.2f} GB')
  finally:
    shutil.rmtree(root)


if __name__ == '__main__':
  main()
