"""google-tunix's sampler on a job of `peers`, with an interpreter that has it.

Nothing of this project is imported. The model, its loader and the sampler are
tunix's own; key/value caches are just as long as prompt and response. Forms:
`slots`, as many candidates a call as the others write at a time, and `all` of
them in one call. It does not score.
"""

import importlib.metadata
import json
import os
import sys
import time

import jax.numpy as jnp
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen2 import params as qwen2_params


class Numbers:
  """A tokeniser of texts that are token ids already."""

  def __init__(self, pad: int, eos: int):
    self._pad, self._eos = pad, eos

  def encode(self, text, **_):
    return [int(x) for x in text.split()]

  def decode(self, ids, **_):
    return ''

  def bos_id(self):
    return 0  # none

  def eos_id(self):
    return self._eos

  def pad_id(self):
    return self._pad


def main() -> None:
  """See `peers`."""
  # Whatever else prints does not disturb the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  with open(sys.argv[1]) as file:
    job = json.load(file)
  config = qwen2.ModelConfig(
    num_layers=job['layers'],
    vocab_size=job['vocabulary'],
    embed_dim=job['width'],
    hidden_dim=job['feed_forward'],
    num_heads=job['heads'],
    head_dim=job['head_width'],
    num_kv_heads=job['kv_heads'],
    rope_theta=job['rope_theta'],
    norm_eps=job['norm_eps'],
  )
  model = qwen2_params.create_model_from_safe_tensors(
    job['folder'], config, dtype=jnp.float32
  )
  longest = max(map(len, job['prompts']))
  sampler = sampler_lib.Sampler(
    model,
    Numbers(job['pad'], job['stop_ids'][0]),
    sampler_lib.CacheConfig(
      cache_size=longest + job['longest'],
      num_layers=job['layers'],
      num_kv_heads=job['kv_heads'],
      head_dim=job['head_width'],
    ),
  )
  k = job['candidates']
  texts = [' '.join(map(str, x)) for x in job['prompts'] for _ in range(k)]
  sizes = {'slots': job['slots'], 'all': len(texts)}
  how = {'temperature': 0.0}
  if job['temperature']:
    how = {'temperature': job['temperature'], 'top_p': 1.0}

  def draw(form: str, seed: int):
    tokens, size = [], sizes[form]
    for first in range(0, len(texts), size):
      out = sampler(
        texts[first : first + size],
        max_generation_steps=job['longest'],
        max_prompt_length=longest,
        eos_tokens=job['stop_ids'],
        # Batches of one run differ in their draws.
        seed=seed * len(texts) + first,
        **how,
      )
      tokens += out.tokens
    return tokens

  names = ('google-tunix', 'jax')
  versions = {name: importlib.metadata.version(name) for name in names}
  print(json.dumps(versions), file=answers, flush=True)
  for line in sys.stdin:
    form, seed = line.split()
    started = time.perf_counter()
    tokens = draw(form, int(seed))
    seconds = time.perf_counter() - started
    # It drops the stop id that it drew: one that ends a response counts.
    stop = job['stop_ids'][:1]
    rows = [
      row.tolist() + (stop if len(row) < job['longest'] else [])
      for row in tokens
    ]
    answer = {
      'seconds': seconds,
      'tokens': [rows[i : i + k] for i in range(0, len(rows), k)],
      'scores': None,
    }
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  main()
