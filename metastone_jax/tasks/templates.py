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
    instruction: appended to questions that do not end in it, e.g. how to give
      the answer.
  """

  before: str
  after: str
  instruction: str = ''

  def render(self, question: str) -> str:
    """The prompt text of a question."""
    asked = with_instruction(question, self.instruction)
    return f'{self.before}{asked}{self.after}'

  def response(self, canonical: str) -> str:
    """A demonstration, as the tasks write it."""
    return canonical


CHATML_THINK = ChatTemplate(
  before='<|im_start|>user\n',
  after='<|im_end|>\n<|im_start|>assistant\n<think>\n',
)

RESPONSE_END = '<|im_end|>'


def with_instruction(question: str, instruction: str) -> str:
  """The question with the instruction at its end, once.

  Question files of this field come with an instruction at the end of every
  question, often the one that the recipe appends.
  """
  if question.rstrip().endswith(instruction.strip()):
    return question
  return question + instruction


def render_response(thinking: str, answer: str) -> str:
  """A whole response: steps, end of thinking, boxed answer, end of turn.

  Args:
    thinking: steps, each closed by its mark ".\\n\\n".
    answer: what goes into the box.
  """
  return f'{thinking}</think>\n\n\\boxed{{ {answer} }}{RESPONSE_END}'
