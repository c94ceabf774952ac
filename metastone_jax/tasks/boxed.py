"""Finding the last `\\boxed{...}` of a text.

Linear time on any input, no regular expressions, no recursion: responses are
hostile input.
"""

_BOX = '\\boxed'


def last_boxed(text: str) -> str | None:
  """The content of the last box, braces balanced.

  Braces escaped with a backslash do not count. A last box that is never
  closed (a truncated answer) is no answer, even if an earlier one is whole;
  so is a `\\boxed` without a brace.

  Args:
    text: any string; pass only the text after `</think>`.

  Returns:
    What stands between the braces, unstripped, or None.
  """
  start = text.rfind(_BOX)
  if start < 0:
    return None
  position = start + len(_BOX)
  while position < len(text) and text[position] == ' ':
    position += 1
  if position >= len(text) or text[position] != '{':
    return None
  begin = position + 1
  depth = 0
  while position < len(text):
    character = text[position]
    if character == '\\':
      position += 2
      continue
    if character == '{':
      depth += 1
    elif character == '}':
      depth -= 1
      if depth == 0:
        return text[begin:position]
    position += 1
  return None
