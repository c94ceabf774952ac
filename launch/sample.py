r"""Asks a model: k candidates, scored as they are written; the best answers.

  python -m launch.sample --checkpoint=models/smollm2-135m --max_tokens=128 \
    --question="What is 17 + 25? Think step by step." --effort=medium

  python -m launch.sample --checkpoint=runs/tiny --input=questions.jsonl \
    --output=answers.jsonl --k=8

The checkpoint is a folder of a run or of launch.ingest, a Hugging Face folder
or a .gguf file. With --input (JSON lines with `question` or `prompt`) all
questions share the slots; the same command goes on where it was stopped.
"""

import functools
import json
import time

import jax
from absl import flags

from launch import cli, show_answer
from launch.answers_file import AnswersFile, read_questions
from launch.drawing import Drawing
from metastone_jax.checkpoints import Pretrained
from metastone_jax.data import ChatFormat, Tokenizer, tokenizer_from_files
from metastone_jax.errors import UserError
from metastone_jax.evaluation import result_output
from metastone_jax.model import unstack_params
from metastone_jax.parallel import Sharder, make_mesh
from metastone_jax.sampling import decode_params
from metastone_jax.sampling.engine import Answer, Engine, Request
from metastone_jax.telemetry import ByteProgress, Progress

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'The model.')
_STEP = flags.DEFINE_integer('step', None, 'Checkpoint step; default: newest.')
_QUESTION = flags.DEFINE_string('question', None, 'What to ask.')
_INPUT = flags.DEFINE_string(
  'input', None, 'JSON lines of questions, instead of --question.'
)
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Where their answers go, as JSON lines.'
)
_SYSTEM = flags.DEFINE_string('system', None, 'A system message before it.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Of the computation.'
)
_TENSOR = flags.DEFINE_integer(
  'tensor', 1, 'Devices that share one copy of the weights.'
)
_JSON = flags.DEFINE_bool('json', False, 'Print JSON lines instead.')


def _data_options(pretrained: Pretrained) -> dict:
  """What the recipe says of texts, if it is a run."""
  recipe = pretrained.path / 'config.json'
  if pretrained.is_ours and recipe.exists():
    return json.loads(recipe.read_text())['data']
  return {}


def _questions() -> list[tuple[str, dict]]:
  """What to ask, and what else a line of the input says."""
  if (_QUESTION.value is None) == (_INPUT.value is None):
    raise UserError(
      '--checkpoint and either --question or --input are needed; --help shows '
      'an example'
    )
  if _INPUT.value is None:
    if _OUTPUT.value is not None:
      raise UserError('--output goes with --input; for one question use --json')
    if not _QUESTION.value.strip():
      raise UserError('--question is empty; ask something')
    return [(_QUESTION.value, {})]
  if _OUTPUT.value is None:
    raise UserError('--input needs --output=FILE for the answers')
  return read_questions(_INPUT.value)


def main() -> None:
  """Parses, loads, draws, prints."""
  cli.refuse_several('launch.sample')
  if _CHECKPOINT.value is None:
    raise UserError(
      '--checkpoint and either --question or --input are needed; --help shows '
      'an example'
    )
  questions = _questions()
  # Whole weights on each device, or split over some: gathering them for every
  # token would cost more than the token.
  sharder = Sharder.of(make_mesh({'data': -1, 'tensor': _TENSOR.value}))
  with Pretrained(_CHECKPOINT.value) as pretrained, Progress() as progress:
    options = _data_options(pretrained)
    tokenizer, chat = tokenizer_from_files(
      pretrained.files,
      pretrained.where,
      think_tags=options.get('think_tags'),
      instruction=options.get('instruction', ''),
      system=_SYSTEM.value or options.get('system'),
    )
    drawing = Drawing.from_flags(
      tokenizer,
      chat,
      step_marks=options.get('step_marks'),
      context=pretrained.context,
      where=pretrained.where,
    )
    requests = [
      drawing.request(question, index)
      for index, (question, _) in enumerate(questions)
    ]
    # Now: a run that goes on has a newer one later.
    step = pretrained.verified_step(_STEP.value)
    config = pretrained.configure(
      dtype=_DTYPE.value, param_dtype=_DTYPE.value, remat='none'
    )
    if not pretrained.has_score_head():
      progress.note(
        f'warning: {pretrained.where} has no score head; a fresh one judges, '
        'which knows nothing'
      )

    def answers(wanted: list[Request]):
      params = pretrained.load(
        config,
        sharder,
        step=step,
        verified=step is not None,
        progress=ByteProgress(progress, 'read'),
      )
      engine = Engine(
        jax.jit(_laid_out, static_argnums=1)(params, config),
        drawing.seed,
        model_config=config,
        config=drawing.sampling,
        engine_config=drawing.engine_config(
          len(wanted), sharder.num_parts('batch')
        ),
        sharder=sharder,
      )
      del params
      done = len(questions) - len(wanted)
      progress.phase('draw', len(questions), initial=done)
      yield from drawing.answers(engine, wanted)

    decode = functools.partial(_decode, tokenizer, chat)
    started = time.monotonic()
    if _INPUT.value is None:
      (answer,) = answers(requests)
      seconds = time.monotonic() - started
      progress.update(1, tokens=answer.tokens)
    else:
      settings = drawing.settings | {
        'step': step,
        **{flag.name: flag.value for flag in (_CHECKPOINT, _SYSTEM, _DTYPE)},
      }
      with AnswersFile(
        _OUTPUT.value, [question for question, _ in questions], settings
      ) as file:
        _answer_all(file, questions, requests, answers, decode, progress)
      return
  if _JSON.value:
    row = _row(questions[0], answer, decode, seconds)
    print(json.dumps(row, ensure_ascii=False))
  else:
    show_answer.show(answer, decode, seconds=seconds)


def _laid_out(params, config):
  """Of the compute dtype, a tree a layer: what decoding reads."""
  return unstack_params(config, decode_params(params, config))


def _decode(tokenizer: Tokenizer, chat: ChatFormat, ids) -> str:
  return chat.without_end(tokenizer.decode(ids))


def _row(question, answer: Answer, decode, seconds: float) -> dict:
  """A line of the output, as the released code has it."""
  text, fields = question
  return {
    **fields,
    'prompt': text,
    'output': result_output(
      decode(answer.token_A.tolist()),
      seconds,
      [decode(c.token_R.tolist()) for c in answer.candidates],
      [c.score for c in answer.candidates],
    ),
    'best': answer.best,
    'finished': [c.reason for c in answer.candidates],
    'tokens': answer.tokens,
  }


def _answer_all(
  file: AnswersFile, questions, requests, answers, decode, progress
) -> None:
  """Every question without an answer yet, into the file."""
  wanted = [r for r in requests if r.draw not in file.done]
  if not wanted:
    progress.note(f'{_OUTPUT.value} has all {len(requests)} answers')
    return
  started, tokens = time.monotonic(), 0
  for count, answer in enumerate(answers(wanted), 1):
    index = answer.request.draw
    seconds = (time.monotonic() - started) / count  # its share
    row = _row(questions[index], answer, decode, seconds)
    file.add(index, row)
    if _JSON.value:
      print(json.dumps({**row, 'index': index}, ensure_ascii=False), flush=True)
    tokens += answer.tokens
    progress.update(len(requests) - len(wanted) + count, tokens=answer.tokens)
  progress.note(
    f'{_OUTPUT.value}: {len(wanted)} answers, {tokens} tokens in '
    f'{time.monotonic() - started:.1f} s'
  )


if __name__ == '__main__':
  cli.run(main, interrupted='finished answers are in --output')
