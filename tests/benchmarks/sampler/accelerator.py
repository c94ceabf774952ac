"""The engine at the 1.5B model's shapes, on one accelerator.

  python -m tests.benchmarks.sampler.accelerator [--repeats=3]

32 slots of 4 problems, all responses of one length, greedy, random weights in
bfloat16, marks scored. Each form runs in a process of its own:

- `auto`, `xla`, `pallas_gpu` (`pallas_tpu`): ours, by how a decoder attends;
- `torch`: transformers' generate, the same 32 rows at once, and `torch_2`, two
  rows at once, as the released sampler draws. Neither scores; the prompt is
  read once for each row.

Tokens a second of the whole job, prefill included. `of the memory's bandwidth`:
what a turn has to read (weights, score head and each prompt's cache once, what
the slots have written) over what the device could read in the time of a turn.
`turn`: from a second job with half the tokens, so the prefill is not in it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# Prompt, response: tokens.
WORKS = {'short': (512, 512), 'long': (4096, 2048)}
PROBLEMS, CANDIDATES = 4, 8
MODEL = '1.5b'


def _ours(kind: str, prompt: int, response: int, repeats: int):
  """Seconds of jobs with `response` tokens, and with half of them."""
  import dataclasses

  import jax

  from metastone_jax.model import preset, unstack_params
  from metastone_jax.parallel import Sharder
  from metastone_jax.sampling.engine import Engine, EngineConfig
  from metastone_jax.sampling.rollout import decode_params
  from tests.benchmarks.sampler import work

  config = preset(MODEL, decode_attention=kind)
  work.MODELS[MODEL] = config
  params = jax.jit(lambda x: unstack_params(config, decode_params(x, config)))(
    work.parameters(MODEL)
  )
  work.parameters.cache_clear()  # the float32 ones
  _say('parameters are made')
  slots = PROBLEMS * CANDIDATES
  job = work.Work(MODEL, PROBLEMS, CANDIDATES, prompt, response, slots)
  engine = Engine(
    params,
    0,
    model_config=config,
    config=job.sampling,
    engine_config=EngineConfig(
      num_slots=slots, group=CANDIDATES, positions=prompt, columns=response
    ),
    sharder=Sharder(),
  )

  def run(tokens: int) -> float:
    requests = [
      dataclasses.replace(x, max_tokens=tokens) for x in job.requests()
    ]
    started = time.perf_counter()
    drawn = sum(len(x.token_R) for x in engine.run(requests))
    seconds = time.perf_counter() - started
    assert drawn == slots * tokens, (drawn, slots * tokens)
    _say(f'{tokens} tokens each: {seconds:.1f} s')
    return seconds

  run(response // 2)  # compiles
  found = [
    statistics.median(run(tokens) for _ in range(repeats))
    for tokens in (response, response // 2)
  ]
  return found, jax.devices()[0].device_kind


def _say(text: str) -> None:
  print(f'{time.strftime("%X")} {text}', file=sys.stderr, flush=True)


def _torch(rows: int, prompt: int, response: int, repeats: int):
  """The same of `rows` rows."""
  import torch
  import transformers

  from metastone_jax.model import preset

  config = preset(MODEL)
  transformers.utils.logging.set_verbosity_error()
  torch.manual_seed(0)
  torch.set_default_device('cuda')
  torch.set_default_dtype(torch.bfloat16)
  model = transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(
      vocab_size=config.vocab_size,
      hidden_size=config.width,
      num_hidden_layers=config.num_layers,
      num_attention_heads=config.num_heads,
      num_key_value_heads=config.num_kv_heads,
      intermediate_size=config.feed_forward,
      max_position_embeddings=prompt + response,
      tie_word_embeddings=False,
    )
  ).eval()
  _say('parameters are made')
  ids = torch.randint(4, config.vocab_size, (rows, prompt), device='cuda')
  found = []
  # The first, shorter one warms up.
  for length in (response // 8, response, response // 2):
    seconds = []
    for _ in range(repeats):
      torch.cuda.synchronize()
      started = time.perf_counter()
      with torch.inference_mode():
        out = model.generate(
          ids,
          attention_mask=torch.ones_like(ids),
          do_sample=False,
          min_new_tokens=length,
          max_new_tokens=length,
          pad_token_id=0,
        )
      torch.cuda.synchronize()
      seconds.append(time.perf_counter() - started)
      _say(f'{length} tokens each: {seconds[-1]:.1f} s')
      assert out.shape[1] == prompt + length
    found.append(statistics.median(seconds))
  return found[1:], torch.cuda.get_device_name()


def rows_of(form: str) -> int:
  """Responses that a form writes at a time."""
  return 2 if form == 'torch_2' else PROBLEMS * CANDIDATES


def turn_bytes(prompt: int, written: float, rows: int) -> float:
  """Least bytes of a turn, see the module.

  Args:
    prompt: tokens of each.
    written: by each row, on average.
    rows: see `rows_of`.
  """
  from metastone_jax.compile_check import accounting
  from metastone_jax.model import preset

  return accounting.decode_step(
    preset(MODEL),
    slots=rows,
    prompts=min(rows, PROBLEMS),
    prompt=prompt,
    context=written,
    devices=1,
    tensor=1,
  ).memory_bytes


def main() -> None:
  """Runs every form, prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--works', nargs='+', default=[*WORKS], choices=WORKS)
  parser.add_argument(
    '--forms', nargs='+', default=['auto', 'xla', 'torch', 'torch_2']
  )
  parser.add_argument('--one', nargs=2, default=None, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.one:
    form, (prompt, response) = args.one[0], WORKS[args.one[1]]
    if form.startswith('torch'):
      found = _torch(rows_of(form), prompt, response, args.repeats)
    else:
      found = _ours(form, prompt, response, args.repeats)
    print(json.dumps(found))
    return
  from tests.benchmarks import chips

  for name in args.works:
    prompt, response = WORKS[name]
    print(f'{MODEL}, prompts of {prompt} tokens, responses of {response}')
    for form in args.forms:
      command = [sys.executable, '-m', 'tests.benchmarks.sampler.accelerator']
      command += [f'--repeats={args.repeats}', '--one', form, name]
      done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
      )
      if done.returncode:
        print(f'  {form}: failed with exit status {done.returncode}')
        continue
      (whole, half), device = json.loads(done.stdout.splitlines()[-1])
      rows = rows_of(form)
      turn = (whole - half) / (response - response // 2)
      least = turn_bytes(prompt, 0.75 * response, rows)
      _, chip = chips.chip_of(device)
      print(
        f'  {form:10} {rows * response / whole:.0f} tokens/s, turn '
        f'{1e3 * turn:.2f} ms, '
        f"{100 * least / turn / chip.memory_bandwidth:.0f} % of the memory's "
        f'bandwidth ({device})',
        flush=True,
      )


if __name__ == '__main__':
  main()
