r"""Asks a model: k candidates, scored as they are written; the best answers.

  python -m launch.sample --checkpoint=models/smollm2-135m --max_tokens=128 \
    --question="What is 17 + 25? Think step by step." --effort=medium

The checkpoint is a folder of a run or of launch.ingest, a Hugging Face folder
or a .gguf file.
"""

import functools
import json
import time

import jax
import numpy as np
from absl import flags

from launch import cli
from metastone_jax.checkpoints import Pretrained
from metastone_jax.data import ChatFormat, Tokenizer, tokenizer_from_files
from metastone_jax.errors import UserError
from metastone_jax.evaluation import result_output
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling import EFFORTS, SamplingConfig, best_of_k
from metastone_jax.telemetry import ByteProgress, Progress

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'The model.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default: newest.')
_QUESTION = flags.DEFINE_string('question', None, 'What to ask.')
_SYSTEM = flags.DEFINE_string('system', None, 'A system message before it.')
_EFFORT = flags.DEFINE_enum(
  'effort',
  'low',
  list(EFFORTS),
  'Candidates: ' + ', '.join(f'{name} {k}' for name, k in EFFORTS.items()),
)
_K = flags.DEFINE_integer('k', None, 'Candidates, instead of --effort.')
_FORM = flags.DEFINE_enum(
  'form',
  'complete',
  ['complete', 'trace'],
  "'complete': k whole responses; 'trace': k thinking traces, one answer.",
)
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', 512, 'Of a response.')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.6, '0 = greedy.')
_TOP_P = flags.DEFINE_float('top_p', 0.95, '1 = off.')
_MARKS = flags.DEFINE_multi_string(
  'step_mark',
  None,
  'Text that ends a step, one token; repeat the flag for more. Default: those '
  'of the run, else the first of .\\n\\n, \\n\\n, .\\n, \\n that is a token.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Of the computation.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')
_JSON = flags.DEFINE_bool('json', False, 'Print one JSON object instead.')


def _data_options(pretrained: Pretrained) -> dict:
  """What the recipe says of texts, if it is a run."""
  recipe = pretrained.path / 'config.json'
  if pretrained.is_ours and recipe.exists():
    return json.loads(recipe.read_text())['data']
  return {}


def main() -> None:
  """Parses, loads, draws, prints."""
  cli.refuse_several('launch.sample')
  if _CHECKPOINT.value is None or _QUESTION.value is None:
    raise UserError(
      '--checkpoint and --question are needed; --help shows an example'
    )
  k = EFFORTS[_EFFORT.value] if _K.value is None else _K.value
  sharder = Sharder.of(make_mesh({'fsdp': -1}))
  with Pretrained(_CHECKPOINT.value) as pretrained, Progress() as progress:
    options = _data_options(pretrained)
    tokenizer, chat = tokenizer_from_files(
      pretrained.files,
      pretrained.where,
      think_tags=options.get('think_tags'),
      instruction=options.get('instruction', ''),
      system=_SYSTEM.value or options.get('system'),
    )
    marks = (
      _MARKS.value
      or options.get('step_marks')
      or tokenizer.find_step_marks()[:1]
    )
    sampling = SamplingConfig(
      max_response_length=_MAX_TOKENS.value,
      step_ids=tokenizer.step_ids(marks),
      **tokenizer.sampling_ids(),
      temperature=_TEMPERATURE.value,
      top_p=_TOP_P.value,
    )
    if _FORM.value == 'trace' and not tokenizer.has_think_tags:
      raise UserError(
        f'--form=trace needs think tags, which {pretrained.where} has not; use '
        '--form=complete'
      )
    ids = np.array([tokenizer.encode(chat.render(_QUESTION.value))], np.int32)
    config = pretrained.configure(
      dtype=_DTYPE.value, param_dtype=_DTYPE.value, remat='none'
    )
    if not pretrained.has_score_head():
      progress.note(
        f'warning: {pretrained.where} has no score head; a fresh one judges, '
        'which knows nothing'
      )
    params = pretrained.load(
      config,
      sharder,
      step=_STEP.value,
      progress=ByteProgress(progress, 'read'),
    )
    progress.phase('draw', 1)
    started = time.monotonic()
    draw = jax.jit(
      functools.partial(
        best_of_k,
        k=k,
        model_config=config,
        config=sampling,
        form=_FORM.value,
        answer_length=_MAX_TOKENS.value if _FORM.value == 'trace' else 0,
        sharder=sharder,
      )
    )
    found = jax.device_get(
      draw(
        params,
        ids,
        np.array([ids.shape[1]], np.int32),
        np.int32(_SEED.value),
        np.zeros(1, np.int32),
      )
    )
    seconds = time.monotonic() - started
    progress.update(1)
  _show(found, tokenizer, chat, k, seconds)


def _show(
  found, tokenizer: Tokenizer, chat: ChatFormat, k: int, seconds: float
) -> None:
  drawn = found.candidates

  def read(token_BR, length_B):
    texts = tokenizer.decode_rows(token_BR, length_B)
    return [chat.without_end(text) for text in texts]

  texts = read(drawn.token_PNR[0], drawn.length_PN[0])
  (answer,) = read(found.answer_PA, found.answer_length_P)
  best, scores = int(found.best_P[0]), drawn.score_PN[0]
  if _JSON.value:
    print(
      json.dumps(
        {
          'prompt': _QUESTION.value,
          'output': result_output(answer, seconds, texts, scores),
          'best': best,
        },
        ensure_ascii=False,
      )
    )
    return
  print(answer)
  tokens = int(drawn.length_PN.sum())
  print(
    f'\n{k} candidates, {tokens} tokens in {seconds:.1f} s (compilation '
    'included); rank, score, steps, tokens:'
  )
  for rank, n in enumerate(np.argsort(-scores, kind='stable')):
    ending = '' if drawn.finished_PN[0, n] else ', cut off'
    chosen = ' <- the answer' if n == best else ''
    print(
      f'{rank + 1:3d}  {scores[n]:.3f}  {drawn.step_mask_PNR[0, n].sum():3d}  '
      f'{drawn.length_PN[0, n]:5d}{ending}{chosen}'
    )


if __name__ == '__main__':
  cli.run(main, interrupted='nothing was answered')
