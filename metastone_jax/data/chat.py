"""Chat templates: how one model writes a conversation, and a task's texts.

`ChatTemplate` renders the Jinja template that comes with a model exactly as
transformers does (compared with 5.24). A template is code of whoever made the
model: it runs in Jinja's sandbox, where it can compute but not reach out.

`ChatFormat` is what data pipelines use. Tasks speak one canonical language:
a question; a response `thinking</think>\\n\\nanswer<|im_end|>` that follows
`<think>\\n`. A `ChatFormat` says how these look for one model, and maps what
the model writes back to what verifiers read. For the shipped tokenizer all of
it is the identity.
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from absl import logging
from etils import epath

from metastone_jax import errors
from metastone_jax.data import tokenizer as tokenizer_lib
from metastone_jax.data import tokenizer_files
from metastone_jax.tasks import templates

# What a model without a template of its own is given.
DEFAULT_TEMPLATE = (
  '{% for message in messages %}'
  "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
  "{{ '<|im_end|>' + '\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_CANONICAL_THINK_END = '</think>'
_CANONICAL_EOS = templates.RESPONSE_END

# Names a message's reasoning has in one place or another; templates read the
# first, gpt-oss's the second.
_REASONING_NAMES = ('reasoning_content', 'thinking', 'reasoning')


class PromptTemplate(Protocol):
  """What a pipeline needs of a chat form; a `ChatFormat` gives more."""

  def render(self, question: str) -> str:
    """The prompt text of a question."""

  def response(self, canonical: str) -> str:
    """A demonstration, canonical, as the model would write it."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A model's chat template.

  Attributes:
    source: in Jinja.
    name: where it came from, for messages.
    tool_source: used instead of `source` when tools are given.
    special_tokens: variables every template may use, 'bos_token' and the like.

  Raises:
    UserError: a template with a syntax error.
  """

  source: str
  name: str = 'chat template'
  tool_source: str | None = None
  special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    _compile(self.source, self.name)
    if self.tool_source is not None:
      _compile(self.tool_source, self.name)

  @classmethod
  def from_folder(cls, path: epath.PathLike) -> 'ChatTemplate':
    """Reads the template of a model.

    Args:
      path: tokenizer folder, or a tokenizer file in it. Looked at in turn:
        `chat_template.jinja` (with `chat_templates/*.jinja`), `chat_template`
        in `tokenizer_config.json` (one, or a list with names), and
        `chat_template.json`.

    Returns:
      The template; ChatML where the model has none, which is logged.

    Raises:
      UserError: a file of another form, several templates without a default,
        or a syntax error.
    """
    folder = epath.Path(path)
    if not folder.is_dir():
      folder = folder.parent
    settings = tokenizer_files.read_settings(folder)
    sources, file = _read_sources(folder, settings.chat_template)
    if not sources:
      logging.warning(
        'no chat template in %s: using ChatML (<|im_start|>role ... '
        '<|im_end|>), which the model may not have learnt',
        folder,
      )
      sources, file = {'default': DEFAULT_TEMPLATE}, 'ChatML'
    if 'default' not in sources:
      raise errors.UserError(
        f'chat template {file} has only the names {sorted(sources)}; add one '
        "named 'default'"
      )
    return cls(
      sources['default'],
      name=str(file),
      tool_source=sources.get('tool_use'),
      special_tokens=settings.special_tokens,
    )

  def render(
    self,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    **variables: Any,
  ) -> str:
    """The text of a conversation.

    A template that prints today's date (`strftime_now`; Llama 3.1 and later)
    gives other prompts tomorrow: pass the variable it reads instead
    (`date_string` there) where runs must repeat.

    Args:
      messages: each with 'role' and 'content', and what else the template
        reads ('tool_calls', 'reasoning_content').
      add_generation_prompt: whether to open the assistant's next turn.
      **variables: for the template, e.g. enable_thinking=False or tools=[...]
        (JSON schemas). They win over special tokens.

    Returns:
      The text.

    Raises:
      UserError: no message, or the template fails or refuses the messages.
    """
    values = {
      'tools': None,
      'documents': None,
      **self.special_tokens,
      **variables,
    }
    source = self.source
    if values['tools'] is not None and self.tool_source is not None:
      source = self.tool_source
    if not messages:
      raise errors.UserError(
        f'chat template {self.name} was given no message; give at least one'
      )
    try:
      return _compile(source, self.name).render(
        messages=[_message(m) for m in messages],
        add_generation_prompt=add_generation_prompt,
        **values,
      )
    except Exception as error:  # Whatever code of the template can raise.
      raise errors.UserError(
        f'chat template {self.name} cannot render these messages '
        f'({tokenizer_files.one_line(error) or type(error).__name__}); change '
        'the messages or the template'
      ) from error


@dataclasses.dataclass(frozen=True)
class ChatFormat:
  """A task's canonical texts in the form of one model.

  Attributes:
    template: of the model.
    stop_tokens: texts that end a response; the first is written, any is read.
    think_tags: around the thinking; () for a model without.
    instruction: appended to questions that do not end in it, e.g. how to give
      the answer.
    system: a system message before the question; None for none.
    variables: for the template, e.g. {'date_string': '1 May 2026'}.
  """

  template: ChatTemplate
  stop_tokens: tuple[str, ...] = (_CANONICAL_EOS,)
  think_tags: tuple[str, ...] = tokenizer_lib.THINK_TAGS
  instruction: str = ''
  system: str | None = None
  variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_tokenizer(
    cls,
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    instruction: str = '',
    system: str | None = None,
    variables: Mapping[str, Any] | None = None,
  ) -> 'ChatFormat':
    """The format of the model a tokenizer belongs to.

    Args:
      tokenizer: gives the folder of the template, the think tags, the stop
        tokens and (for a bare SentencePiece file) the special tokens.
      instruction: see the class.
      system: see the class.
      variables: see the class.

    Returns:
      The format.

    Raises:
      UserError: see `ChatTemplate.from_folder`.
    """
    if tokenizer.folder is None:
      raise errors.UserError(
        f'tokenizer {tokenizer.name} has no folder to read a chat template '
        'from; load it with Tokenizer.from_folder'
      )
    template = ChatTemplate.from_folder(tokenizer.folder)
    return cls(
      dataclasses.replace(template, special_tokens=tokenizer.special_tokens),
      stop_tokens=tokenizer.stop_tokens,
      think_tags=tokenizer.think_tags,
      instruction=instruction,
      system=system,
      variables=dict(variables or {}),
    )

  def render(self, question: str) -> str:
    """The prompt of a question, up to where the response starts.

    With think tags it ends in the opened tag and a line break, whether or not
    the template opens it; a closed, empty block of thinking at its end (the
    template's word for "do not think") gives way to the opened tag.
    """
    asked = templates.with_instruction(question, self.instruction)
    messages = [{'role': 'user', 'content': asked}]
    if self.system is not None:
      messages.insert(0, {'role': 'system', 'content': self.system})
    text = self.template.render(
      messages, add_generation_prompt=True, **self.variables
    )
    if not self.think_tags:
      return text
    start, end = self.think_tags
    open_tag = re.escape(start) + rf'\s*(?:{re.escape(end)}\s*)?\Z'
    return re.sub(open_tag, '', text) + start + '\n'

  def response(self, canonical: str) -> str:
    """A demonstration as this model would write it.

    Args:
      canonical: `thinking</think>\\n\\nanswer<|im_end|>`.

    Returns:
      The same with the model's own tag and end; without think tags, the
      thinking, a blank line and the answer.
    """
    text = canonical
    thinking, tag, answer = canonical.rpartition(_CANONICAL_THINK_END)
    if self.think_tags:
      text = canonical.replace(_CANONICAL_THINK_END, self.think_tags[1])
    elif tag:
      # The mark of the last step may be that blank line already.
      text = thinking.rstrip('\n') + '\n\n' + answer.lstrip('\n')
    return text.replace(_CANONICAL_EOS, self.stop_tokens[0])

  def without_end(self, text: str) -> str:
    """A response without the token that ended it."""
    for stop in self.stop_tokens:
      text = text.removesuffix(stop)
    return text

  def canonical(self, text: str) -> str:
    """What the verifiers read of a response that this model wrote.

    Args:
      text: what follows the prompt, special tokens included.

    Returns:
      The text in canonical form. Without think tags all of it counts as the
      answer. Canonical marks that mean nothing to this model, but stand in
      its text, are broken up so that they mean nothing there either.
    """
    think_end = self.think_tags[1] if self.think_tags else None
    if think_end != _CANONICAL_THINK_END:
      text = text.replace(_CANONICAL_THINK_END, '< /think>')
    if _CANONICAL_EOS not in self.stop_tokens:
      text = text.replace(_CANONICAL_EOS, '<|im_end |>')
    for stop in sorted(self.stop_tokens, key=len, reverse=True):
      text = text.replace(stop, _CANONICAL_EOS)
    if think_end is None:
      return _CANONICAL_THINK_END + text
    return text.replace(think_end, _CANONICAL_THINK_END)


class _Generation(jinja2.ext.Extension):
  """`{% generation %}`: marks what the assistant wrote; here just its body.

  Rendered through a call, as in transformers, so that variables set inside
  stay inside.
  """

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = self.call_method('_body')
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _body(self, caller):
    return caller()


def _raise_exception(message):
  raise jinja2.TemplateError(message)


def _strftime_now(form):
  return datetime.datetime.now().strftime(form)


def _to_json(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
):
  """Jinja's own filter writes <, > and & as escapes for HTML."""
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


@functools.lru_cache(maxsize=32)
def _compile(source: str, name: str) -> jinja2.Template:
  """The compiled template, in the environment of transformers."""
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[_Generation, jinja2.ext.loopcontrols],
  )
  environment.filters['tojson'] = _to_json
  environment.globals['raise_exception'] = _raise_exception
  environment.globals['strftime_now'] = _strftime_now
  try:
    return environment.from_string(source)
  except Exception as error:  # Syntax errors, and a few of Python's compiler.
    line = getattr(error, 'lineno', None)
    raise errors.UserError(
      f'chat template {name} is no Jinja template (line {line}: '
      f'{tokenizer_files.one_line(error)}); correct it'
    ) from error


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
  """A message as templates get it: no empty keys, known reasoning names."""
  message = {k: v for k, v in message.items() if v is not None}
  for name in _REASONING_NAMES:
    if name in message:
      text = message[name]
      return {'thinking': text, **message, 'reasoning_content': text}
  return message


def _read_sources(
  folder: epath.Path, setting: Any
) -> tuple[dict[str, str], epath.Path]:
  """Template name -> source, and the file they stand in."""
  file = folder / 'chat_template.jinja'
  if file.exists():
    sources = {
      f.stem: f.read_text(encoding='utf-8')
      for f in (folder / 'chat_templates').glob('*.jinja')
    }
    return {**sources, 'default': file.read_text(encoding='utf-8')}, file
  file = folder / 'tokenizer_config.json'
  if not setting:
    file = folder / 'chat_template.json'
    setting = tokenizer_files.read_json(file).get('chat_template')
  if not setting:
    return {}, file
  if isinstance(setting, str):
    return {'default': setting}, file
  try:
    sources = {entry['name']: entry['template'] for entry in setting}
    if all(isinstance(text, str) for item in sources.items() for text in item):
      return sources, file
  except (KeyError, TypeError):
    pass
  raise errors.UserError(
    f'chat_template in {file} is neither a text nor a list of '
    '{"name", "template"}; copy the file again'
  )
