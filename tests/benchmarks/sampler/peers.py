"""Other samplers, each in a process that draws when it is told to.

A peer is a script that reads a job (a JSON file: `Job`), loads the model from a
Hugging Face folder with OUR weights, prints one JSON line with its versions,
and then, for every line `FORM SEED` on its input, draws everything once and
prints one JSON line: seconds, tokens (problem by problem, candidate by
candidate), and scores where it has a score head. Its first draw in each form
compiles and is not counted.
"""

import json
import os
import pathlib
import subprocess
from collections.abc import Sequence

import numpy as np

from metastone_jax.checkpoints import export_folder
from metastone_jax.checkpoints.huggingface.export import tensor_reader
from tests.benchmarks.sampler import work


def write_job(folder: pathlib.Path, one: work.Work) -> pathlib.Path:
  """The model and the job file of this work; the file's path.

  Args:
    folder: that exists.
    one: what is drawn.
  """
  config, sampling = work.MODELS[one.model], one.sampling
  model = folder / one.model
  if not model.exists():
    export_folder(
      model,
      config,
      tensor_reader(work.parameters(one.model)),
      dtype='float32',
    )
  job = {
    'folder': str(model),
    'width': config.width,
    'layers': config.num_layers,
    'heads': config.num_heads,
    'kv_heads': config.num_kv_heads,
    'head_width': config.head_width,
    'feed_forward': config.feed_forward,
    'vocabulary': config.vocab_size,
    'rope_theta': config.rope_theta,
    'norm_eps': config.norm_eps,
    'prompts': [list(request.prompt) for request in one.requests()],
    'candidates': one.candidates,
    'longest': one.longest,
    'slots': one.slots,
    'temperature': one.temperature,
    'pad': work.PAD,
    'stop_ids': sampling.stop_ids,
    'step_ids': sampling.step_ids,
    'think': work.THINK,
    'unthink': work.UNTHINK,
  }
  path = folder / 'job.json'
  path.write_text(json.dumps(job))
  return path


class Peer:
  """A peer's process; a context manager that ends it.

  Args:
    command: the script and its interpreter.
    job: of `write_job`.

  Attributes:
    versions: of what it runs.
  """

  def __init__(self, command: Sequence[str], job: pathlib.Path):
    self._process = subprocess.Popen(
      [*command, str(job)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
    )
    try:
      self.versions = ', '.join(f'{k} {v}' for k, v in self._answer().items())
    except BaseException:
      self.__exit__()
      raise

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()

  def _answer(self) -> dict:
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self._process.args} ended; see its errors above')
    return json.loads(line)

  def draw(self, form: str, seed: int) -> tuple[float, work.Drawn]:
    """(seconds, what it drew); scores it does not have are NaN."""
    self._process.stdin.write(f'{form} {seed}\n')
    self._process.stdin.flush()
    answer = self._answer()
    drawn = {}
    for p, tokens in enumerate(answer['tokens']):
      for n, token in enumerate(tokens):
        score = answer['scores'][p][n] if answer['scores'] else np.nan
        drawn[p, n] = np.asarray(token, np.int32), score
    return answer['seconds'], drawn
