"""Chat templates against transformers; texts of tasks for one model."""

import dataclasses
import itertools
import json
import pickle
import random
import shutil

import numpy as np
import pytest
import tokenizers

from metastone_jax import errors
from metastone_jax.data import build_tiny_tokenizer, chat, pipeline
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.tasks import base, boxed, registry, templates
from metastone_jax.tasks import mixture as mixture_lib
from tests.data import chat_templates, real_files

STYLES = {
  'llama_2': chat_templates.LLAMA_2,
  'llama_3': chat_templates.LLAMA_3,
  'deepseek_r1': chat_templates.DEEPSEEK_R1,
}
QUESTION = 'Make -6 using 7, 7, 1, 5.'
MESSAGES = [{'role': 'user', 'content': QUESTION}]


@pytest.fixture(scope='module')
def tiny():
  return tokenizer_lib.Tokenizer.tiny()


def _folder(tmp_path, template=None, **settings):
  """The tiny tokenizer with other settings."""
  shutil.copy(build_tiny_tokenizer.FOLDER / 'tokenizer.json', tmp_path)
  settings = {'eos_token': '<|im_end|>', **settings}
  if template is not None:
    settings['chat_template'] = template
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return tmp_path


def _plain_folder(tmp_path, template=None):
  """A model without think tags that ends in </s>."""
  tree = json.loads(
    (build_tiny_tokenizer.FOLDER / 'tokenizer.json').read_text()
  )
  for name in ('<think>', '</think>'):
    del tree['model']['vocab'][name]
  tree['added_tokens'] = [
    t for t in tree['added_tokens'] if 'think' not in t['content']
  ]
  (tmp_path / 'tokenizer.json').write_text(json.dumps(tree))
  settings = {'eos_token': '</s>', 'bos_token': '<|im_start|>'}
  if template is not None:
    settings['chat_template'] = template
  backend = tokenizers.Tokenizer.from_str(json.dumps(tree))
  backend.add_special_tokens(['</s>'])
  backend.save(str(tmp_path / 'tokenizer.json'))
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(settings))
  return tmp_path


def _compare(folder):
  """Renders all conversations both ways; (compared, refused by both)."""
  transformers = pytest.importorskip('transformers', reason='extra "test"')
  theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
  ours = chat.ChatTemplate.from_folder(folder)
  rendered = refused = 0
  for messages, generate, thinking, tools in itertools.product(
    chat_templates.CONVERSATIONS,
    (False, True),
    ({}, {'enable_thinking': True}, {'enable_thinking': False}),
    ({}, {'tools': [chat_templates.TOOL]}),
  ):
    options = {'add_generation_prompt': generate, **thinking, **tools}
    try:
      expected = theirs.apply_chat_template(messages, tokenize=False, **options)
    except Exception:  # Jinja's errors and those of the template's code.
      refused += 1
      with pytest.raises(errors.UserError, match='cannot render') as info:
        ours.render(messages, **options)
      assert '\n' not in str(info.value)
    else:
      rendered += 1
      assert ours.render(messages, **options) == expected, messages
  return rendered, refused


def test_twenty_conversations():
  texts = [json.dumps(c) for c in chat_templates.CONVERSATIONS]
  assert len(set(texts)) == len(texts) == 20


def test_qwen_renders_as_in_transformers():
  assert _compare(real_files.qwen()) == (240, 0)


@pytest.mark.parametrize(
  ('name', 'rendered', 'refused'),
  [('llama_2', 192, 48), ('llama_3', 228, 12), ('deepseek_r1', 240, 0)],
)
def test_styles_render_as_in_transformers(tmp_path, name, rendered, refused):
  folder = _folder(tmp_path, STYLES[name], bos_token='<|im_start|>')
  assert _compare(folder) == (rendered, refused)


def test_the_tiny_template_renders_as_in_transformers():
  assert _compare(build_tiny_tokenizer.FOLDER) == (240, 0)


@pytest.mark.parametrize(
  'source',
  [
    # Scopes: what a generation block sets stays inside it.
    '{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}'
    '{{ x }}',
    '{% for m in messages %}{% generation %}{{ loop.index }}{{ m.content }}'
    '{% endgeneration %}{% if loop.index == 2 %}{% break %}{% endif %}'
    '{% endfor %}',
    '  {% if true %}  \n  x\n  {% endif %}\n{# note #}\n y \n\n',
    '{{ {"ü": "<&>"} | tojson }}{{ [1, 2.5, none] | tojson(indent=2) }}'
    '{{ {"b": 1, "a": 2} | tojson(sort_keys=true, separators=(",", ":")) }}'
    '{{ "ü" | tojson(ensure_ascii=true) }}',
    '{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ nothing }}|'
    '{{ tools is none }}|{{ tools is defined }}|{{ documents is none }}',
    '{{ strftime_now("%Y") }}{{ messages[0].items() | list | length }}',
    # Empty keys are gone; reasoning is found under any of its names.
    'M{% for m in messages %}{{ m.tool_calls is defined }}{{ m.thinking }}'
    '{{ m.reasoning_content is defined }}{{ m.keys() | join }}{% endfor %}',
    '{% set ns = namespace(n=0) %}{% for m in messages %}'
    '{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ dict(a=1) }}',
  ],
)
def test_the_environment_is_that_of_transformers(tmp_path, source):
  transformers = pytest.importorskip('transformers', reason='extra "test"')
  flags = dict.fromkeys(('lstrip', 'rstrip', 'normalized'), False)
  bos = {'__type': 'AddedToken', 'content': '<think>', **flags}
  folder = _folder(tmp_path, source, bos_token=bos)
  theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
  ours = chat.ChatTemplate.from_folder(folder)
  for messages in chat_templates.CONVERSATIONS:
    expected = theirs.apply_chat_template(messages, tokenize=False)
    assert expected and ours.render(messages) == expected


def test_rendering_by_hand(tmp_path):
  folder = _folder(tmp_path, chat_templates.LLAMA_2, bos_token='<s>')
  template = chat.ChatTemplate.from_folder(folder)
  messages = [
    {'role': 'system', 'content': 'S'},
    {'role': 'user', 'content': ' a '},
    {'role': 'assistant', 'content': 'b'},
  ]
  assert template.render(messages) == (
    '<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n a  [/INST] b <|im_end|>'
  ).replace('a  [', 'a [')
  # Variables win over special tokens.
  assert template.render(messages[1:2], bos_token='B') == 'B[INST] a [/INST]'


def test_where_the_template_is_read(tmp_path, caplog):
  caplog.set_level('WARNING', 'absl')
  folder = _folder(tmp_path)
  chatml = chat.ChatTemplate.from_folder(folder)
  assert chatml.render(MESSAGES, add_generation_prompt=True) == (
    f'<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n'
  )
  assert 'no chat template' in caplog.text and str(folder) in caplog.text
  caplog.clear()

  def says(**variables):
    found = chat.ChatTemplate.from_folder(folder)
    assert chat.ChatTemplate.from_folder(folder / 'tokenizer.json') == found
    return found.render(MESSAGES, **variables)

  (folder / 'chat_template.json').write_text('{"chat_template": "old"}')
  assert says() == 'old'
  _folder(tmp_path, 'one')
  assert says() == 'one'
  entries = [{'name': 'tool_use', 'template': 'with tools'}]
  entries.append({'name': 'default', 'template': 'of several'})
  _folder(tmp_path, entries)
  assert says() == 'of several' and says(tools=[]) == 'with tools'
  (folder / 'chat_template.jinja').write_text('file')
  assert says() == says(tools=[]) == 'file'
  (folder / 'chat_templates').mkdir()
  (folder / 'chat_templates' / 'tool_use.jinja').write_text('tool file')
  assert says() == 'file' and says(tools=[]) == 'tool file'
  assert not caplog.records


@pytest.mark.parametrize(
  ('template', 'message'),
  [
    ('{% for m in messages %}', 'no Jinja template.*line 1'),
    ('a\n{{ 1 +', 'no Jinja template.*line 2'),
    ("{{ raise_exception('No\nsystem') }}", 'No system'),
    ('{{ nothing.at.all }}', "'nothing' is undefined"),
    ('{{ "a" + 1 }}', 'cannot render.*str'),
    ('{{ messages.append(1) }}', 'cannot render.*unsafe'),
    ('{{ messages.__class__.__mro__ }}', 'cannot render.*unsafe'),
    ('{{ (1).__class__.mro() }}', 'cannot render.*unsafe'),
    ([{'name': 'rag', 'template': 'x'}], r"names \['rag'\]"),
    ([{'name': 'default'}], 'neither a text nor a list'),
    ([{'name': 'default', 'template': 3}], 'neither a text nor a list'),
    (7, 'neither a text nor a list'),
  ],
)
def test_bad_templates_are_named(tmp_path, template, message):
  folder = _folder(tmp_path, template)
  with pytest.raises(errors.UserError, match=message) as info:
    chat.ChatTemplate.from_folder(folder).render(MESSAGES)
  assert '\n' not in str(info.value)
  assert f'{folder}/tokenizer_config.json' in str(info.value)


def test_bad_messages():
  template = chat.ChatTemplate(chat.DEFAULT_TEMPLATE, name='ours')
  for messages in ([], [{'role': 'user'}], ['text'], [{'content': 1}]):
    with pytest.raises(errors.UserError, match='chat template ours'):
      template.render(messages)


def test_the_tiny_format_is_the_identity(tiny):
  form = chat.ChatFormat.from_tokenizer(tiny)
  task = registry.get_task('signs', seed=0)
  for index in range(200):
    problem = task.problem(index, 'train')
    response = task.demonstration(problem)
    expected = templates.CHATML_THINK.render(problem.question)
    assert form.render(problem.question) == expected
    assert form.response(response) == response
    assert form.canonical(response) == response
  rng = random.Random(0)
  parts = ['<think>', '</think>', '<|im_end|>', '\n', '\n\n', 'a', '</s>', ' ']
  for _ in range(500):
    text = ''.join(rng.choices(parts, k=rng.randrange(9)))
    assert form.response(text) == form.canonical(text) == text
  copy = pickle.loads(pickle.dumps(form))
  assert copy.render(QUESTION) == form.render(QUESTION)


def test_instruction_and_system(tiny):
  form = chat.ChatFormat.from_tokenizer(
    tiny, instruction=' Box it.', system='Be brief.'
  )
  assert form.render('Why?') == (
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy? Box it.'
    '<|im_end|>\n<|im_start|>assistant\n<think>\n'
  )
  plain = dataclasses.replace(templates.CHATML_THINK, instruction=' Box it.')
  same = dataclasses.replace(form, system=None)
  assert same.render('Why?') == plain.render('Why?')


@pytest.mark.parametrize(
  ('tail', 'prompt_end'),
  [
    # As R1-distill, Qwen3, and Qwen3 asked not to think.
    ('<A><think>\n', '<A><think>\n'),
    ('<A>\n', '<A>\n<think>\n'),
    ('<A>\n<think>\n\n</think>\n\n', '<A>\n<think>\n'),
    ('<A><think>', '<A><think>\n'),
    ('<A></think>', '<A></think><think>\n'),
    ('<A><think>\nno\n</think>\n', '<A><think>\nno\n</think>\n<think>\n'),
    ('<A><thinking>', '<A><thinking><think>\n'),
  ],
)
def test_prompts_end_in_one_opened_tag(tail, prompt_end):
  source = "{% for m in messages %}{{ '<U>' + m.content }}{% endfor %}"
  source += '{% if add_generation_prompt %}{{ tail }}{% endif %}'
  form = chat.ChatFormat(chat.ChatTemplate(source), variables={'tail': tail})
  for question in ('Why?', '<think>', '<think>\n', '<think></think>'):
    assert form.render(question) == f'<U>{question}{prompt_end}'
  own = dataclasses.replace(form, think_tags=('<A>', '</A>'))
  assert own.render('Why?') == (
    f'<U>Why?{tail}<A>\n' if tail.strip() != '<A>' else '<U>Why?<A>\n'
  )
  untagged = dataclasses.replace(form, think_tags=())
  assert untagged.render('Why?') == f'<U>Why?{tail}'


def test_qwen_prompts():
  qwen = tokenizer_lib.Tokenizer.from_folder(real_files.qwen())
  form = chat.ChatFormat.from_tokenizer(qwen)
  expected = templates.CHATML_THINK.render(QUESTION)
  assert form.render(QUESTION) == expected
  for thinking in (True, False):
    other = dataclasses.replace(form, variables={'enable_thinking': thinking})
    assert other.render(QUESTION) == expected
  response = templates.render_response('One.\n\nTwo.\n\n', '3')
  assert form.response(response) == response
  assert form.canonical(response) == response
  # A second end of turn that the model has learnt.
  both = dataclasses.replace(form, stop_tokens=('<|im_end|>', '<|endoftext|>'))
  assert both.response(response) == response
  ended = response.replace('<|im_end|>', '<|endoftext|>')
  assert both.canonical(ended) == response


def test_a_model_with_other_tokens(tmp_path):
  folder = _folder(tmp_path, STYLES['deepseek_r1'], eos_token='</think>')
  tokenizer = tokenizer_lib.Tokenizer.from_folder(
    folder, eos_token='user', think_tags=('<think>', 'assistant')
  )
  form = chat.ChatFormat.from_tokenizer(tokenizer)
  assert form.stop_tokens == ('user',)
  assert form.render('Why?') == '<｜User｜>Why?<｜Assistant｜><think>\n'
  canonical = templates.render_response('One.\n\n', '3')
  assert form.response(canonical) == 'One.\n\nassistant\n\n\\boxed{ 3 }user'
  assert form.canonical(form.response(canonical)) == canonical
  # Our own marks are plain text to this model: no end of thinking or turn.
  written = (
    '\\boxed{ 1 }</think>\\boxed{ 2 }<|im_end|>assistant\\boxed{ 3 }user4'
  )
  answer = base.final_answer_text(form.canonical(written))
  assert answer == '\\boxed{ 3 }'
  assert base.final_answer_text(form.canonical('1</think>2')) is None


def test_a_model_without_think_tags(tmp_path):
  folder = _plain_folder(tmp_path, STYLES['llama_2'])
  tokenizer = tokenizer_lib.Tokenizer.from_folder(folder)
  form = chat.ChatFormat.from_tokenizer(tokenizer)
  assert form.render(QUESTION) == f'<|im_start|>[INST] {QUESTION} [/INST]'
  canonical = templates.render_response('One.\n\nTwo.\n\n', '3')
  assert form.response(canonical) == 'One.\n\nTwo.\n\n\\boxed{ 3 }</s>'
  bare = templates.render_response('One', '3')
  assert form.response(bare) == 'One\n\n\\boxed{ 3 }</s>'
  assert form.response('\n3<|im_end|>') == '\n3</s>'
  assert form.canonical('One.\n\n3</s>x') == '</think>One.\n\n3<|im_end|>x'
  # All of a response is its answer, whatever tags it spells.
  for text in ('1</think>2</s>', '1<|im_end|>2</s>', '12'):
    answer = base.final_answer_text(form.canonical(text))
    assert answer[0] == '1' and answer[-1] == '2'


@pytest.mark.parametrize('plain', [False, True])
def test_verifiers_accept_what_demonstrations_become(tmp_path, tiny, plain):
  tokenizer = tiny
  if plain:
    tokenizer = tokenizer_lib.Tokenizer.from_folder(_plain_folder(tmp_path))
  form = chat.ChatFormat.from_tokenizer(tokenizer)
  task = registry.get_task('signs', seed=0)
  for index in range(50):
    problem = task.problem(index, 'train')
    written = form.response(task.demonstration(problem))
    assert ('</think>' in written) != plain
    sampled = tokenizer.decode(tokenizer.encode(written))
    assert sampled == written
    assert task.verify(problem, form.canonical(sampled)).reward == 1
    # A wrong number in the box, before the end that this model writes.
    box = boxed.last_boxed(written)
    wrong = written.replace(f'{{{box}}}', '{ 999 }')
    assert task.verify(problem, form.canonical(wrong)).reward == 0


def test_pipelines_take_a_format(tmp_path, tiny):
  mixture = mixture_lib.build_mixture({'signs': 1}, seed=0)
  options = {'size': 40, 'seed': 1, 'max_length': 99}

  def rows(tokenizer, **more):
    data = pipeline.demonstration_dataset(mixture, tokenizer, **options, **more)
    return data.batch_at(data.start(), 40)

  def prompts(tokenizer, **more):
    data = pipeline.problem_dataset(
      mixture, tokenizer, seed=1, split='train', max_prompt_length=60, **more
    )
    return data.batch_at(data.start(), 40)

  same = chat.ChatFormat.from_tokenizer(tiny)
  default, formed = rows(tiny), rows(tiny, template=same)
  for name, array in default.items():
    np.testing.assert_array_equal(formed[name], array)
  for ours, theirs in zip(
    prompts(tiny)[1:], prompts(tiny, template=same)[1:], strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)

  plain = tokenizer_lib.Tokenizer.from_folder(
    _plain_folder(tmp_path, STYLES['llama_2'])
  )
  form = chat.ChatFormat.from_tokenizer(plain, instruction=' Box it.')
  expected = set()
  for i in range(40):
    problem = mixture.problem(i, 'train')
    response = mixture.demonstration(problem).replace('</think>\n\n', '')
    text = f'<|im_start|>[INST] {problem.question} Box it. [/INST]{response}'
    expected.add(text.replace('<|im_end|>', '</s>'))
  batch = rows(plain, template=form)
  found = plain.decode_rows(batch['tokens_BT'], batch['length_B'])
  assert set(found) == expected and len(expected) > 30
  problems, prompt_PS, length_P = prompts(plain, template=form)
  assert plain.decode_rows(prompt_PS, length_P) == [
    f'<|im_start|>[INST] {p.question} Box it. [/INST]' for p in problems
  ]


def test_a_tokenizer_without_folder(tiny):
  bare = tokenizer_lib.Tokenizer(tiny._backend, name='bare')
  with pytest.raises(errors.UserError, match='bare has no folder'):
    chat.ChatFormat.from_tokenizer(bare)
