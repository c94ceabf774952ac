"""The chat form of a prompt (Qwen's ChatML, opened for thinking).

A prompt ends in `<think>\\n`, so that a response starts with its first step
and `</think>` is the model's to write.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """Text around a question.

  Attributes:
    before: everything before the question.
    after: everything between the question and the response.
    instruction: appended to the question, e.g. how to give the answer.
  """

  before: str
  after: str
  instruction: str = ''

  def render(self, question: str) -> str:
    """The prompt text of a question."""
    return f'{self.before}{question}{self.instruction}{self.after}'

  def response(self, canonical: str) -> str:
    """A demonstration, as the tasks write it."""
    return canonical


CHATML_THINK = ChatTemplate(
  before='<|im_start|>user\n',
  after='<|im_end|>\n<|im_start|>assistant\n<think>\n',
)

RESPONSE_END = '<|im_end|>'


def render_response(thinking: str, answer: str) -> str:
  """A whole response: steps, end of thinking, boxed answer, end of turn.

  Args:
    thinking: steps, each closed by its mark ".\\n\\n".
    answer: what goes into the box.
  """
  return f'{thinking}</think>\n\n\\boxed{{ {answer} }}{RESPONSE_END}'
