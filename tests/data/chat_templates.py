"""Chat templates in the styles of three model families, and conversations."""

# Text alone, roles that must alternate, a system message folded into the user.
LLAMA_2 = r"""{% if messages[0]['role'] == 'system' %}
  {%- set loop_messages = messages[1:] %}
  {%- set system_message = messages[0]['content'] %}
{%- else %}
  {%- set loop_messages = messages %}
  {%- set system_message = false %}
{%- endif %}
{%- for message in loop_messages %}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{- raise_exception('Conversation roles must alternate user/assistant') }}
  {%- endif %}
  {%- if loop.index0 == 0 and system_message != false %}
    {%- set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n'
        + message['content'] %}
  {%- else %}
    {%- set content = message['content'] %}
  {%- endif %}
  {%- if message['role'] == 'user' %}
    {{- bos_token + '[INST] ' + content | trim + ' [/INST]' }}
  {%- elif message['role'] == 'assistant' %}
    {{- ' ' + content | trim + ' ' + eos_token }}
  {%- endif %}
{%- endfor %}"""

# A date, tools as indented JSON, blocks on lines of their own.
LLAMA_3 = r"""{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {{- "You have access to these functions:\n\n" }}
    {% for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("This model calls one tool at a time!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson(sort_keys=true) + "}<|eot_id|>" }}
        {%- continue %}
    {%- endif %}
    {%- set role = 'ipython' if message.role == 'tool' else message.role %}
    {{- "<|start_header_id|>" + role + "<|end_header_id|>\n\n" }}
    {%- if role == 'assistant' %}
    {% generation %}
{{ message.content | trim }}<|eot_id|>
    {% endgeneration %}
    {%- else %}
    {{- message.content | trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\n\n" }}
{%- endif %}
"""

# One line, a namespace, thinking cut from earlier turns and opened at the end.
DEEPSEEK_R1 = (
  '{% if not add_generation_prompt is defined %}'
  '{% set add_generation_prompt = false %}{% endif %}'
  "{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}"
  "{%- for message in messages %}{%- if message['role'] == 'system' %}"
  "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
  '{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}'
  "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}"
  "{{'<｜User｜>' + message['content']}}{%- endif %}"
  "{%- if message['role'] == 'assistant' and message['tool_calls'] %}"
  "{%- set ns.is_tool = true -%}{%- for tool in message['tool_calls'] %}"
  "{{'<｜tool▁call▁begin｜>' + tool['function']['name'] + '\\n```json\\n'"
  " + tool['function']['arguments'] | string + '\\n```<｜tool▁call▁end｜>'}}"
  "{%- endfor %}{%- elif message['role'] == 'assistant' %}"
  "{% set content = message['content'] %}{% if '</think>' in content %}"
  "{% set content = content.split('</think>')[-1] %}{% endif %}"
  "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
  "{%- if message['role'] == 'tool' %}"
  "{{'<｜tool▁output▁begin｜>' + message['content']}}{%- endif %}"
  '{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}'
  "{{'<｜Assistant｜><think>\\n'}}{% endif %}"
)

TOOL = {
  'type': 'function',
  'function': {
    'name': 'größe',
    'description': 'Gibt "x" < y & z zurück; 日本',
    'parameters': {
      'type': 'object',
      'properties': {'b': {'type': 'integer'}, 'a': {'type': 'string'}},
      'required': ['b'],
    },
  },
}


def _user(content):
  return {'role': 'user', 'content': content}


def _assistant(content, **more):
  return {'role': 'assistant', 'content': content, **more}


def _system(content):
  return {'role': 'system', 'content': content}


def _call(arguments, name='größe'):
  return {
    'type': 'function',
    'function': {'name': name, 'arguments': arguments},
  }


_THOUGHT = _assistant('<think>\nSum.\n\nDone.\n</think>\n\nIt is 4.')
_REASONED = _assistant('It is 4.', reasoning_content='\nSum <b>.\n\nDone.\n')

CONVERSATIONS = (
  [_user('What is 2 + 2?')],
  [_system('Be brief.'), _user('What is 2 + 2?')],
  [_system('  \n Sei kurz & "klar" <b>.\n '), _user('\n\n Wie? \t')],
  [_user('Hi'), _assistant('Hello'), _user('今天好吗？')],
  [_user('a'), _assistant('b'), _user('c'), _assistant('d'), _user('e')],
  [_system('S'), _user('a'), _assistant('b'), _user('c'), _assistant('d')],
  [_user('2 + 2?'), _THOUGHT],
  [_user('2 + 2?'), _THOUGHT, _user('Sure?')],
  [_user('2 + 2?'), _THOUGHT, _user('Sure?'), _THOUGHT],
  [_user('2 + 2?'), _REASONED],
  [_user('2 + 2?'), _REASONED, _user('Sure?')],
  [_user('2 + 2?'), _assistant('4', reasoning='Old name.')],
  [_user('2 + 2?'), _assistant('4', reasoning_content=None, tool_calls=None)],
  [
    _user('How big?'),
    _assistant('', tool_calls=[_call({'b': 1, 'a': 'ü<&>"'})]),
    {'role': 'tool', 'content': '{"x": 3}'},
    _assistant('3'),
  ],
  [
    _user('How big?'),
    _assistant('Look:', tool_calls=[_call({'b': 1}), _call('{"b": 2}')]),
    {'role': 'tool', 'content': '1'},
    {'role': 'tool', 'content': '2'},
  ],
  [_user('<tool_response>\n5\n</tool_response>'), _assistant('5')],
  [_user('a'), _user('b')],
  [_assistant('I begin.'), _user('Go on.')],
  [_user('{{ 7 * 7 }} {% raw %} <|im_end|> </think> <think>')],
  [_user('שלום 👩‍👩‍👧 مرحبا\r\n\x00\u2028x'), _system('late'), _user('')],
)
