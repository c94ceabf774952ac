"""A metric script, written from the format of the result file alone (SPEC 7).

Result line: {"prompt", "answer", "output": {"content", "time",
"solution_lst": [k texts], "score_lst": [k floats]}}, one JSON object a line.
Nothing of the library is imported.
"""

import collections
import json


def boxed(text):
  """What the last \\boxed{...} behind the thinking holds, or None."""
  answer = text.rpartition('</think>')[2]
  start = answer.rfind('\\boxed{')
  if start < 0:
    return None
  depth, out = 1, ''
  for letter in answer[start + len('\\boxed{') :]:
    depth += {'{': 1, '}': -1}.get(letter, 0)
    if depth == 0:
      return out.strip()
    out += letter
  return None


def metrics(path):
  """{'problems', 'samples', 'pass_at_1', 'content', 'majority', 'any'}."""
  totals = collections.Counter()
  with open(path, encoding='utf-8') as file:
    for line in file:
      row = json.loads(line)
      output, right = row['output'], str(row['answer'])
      answers = [boxed(text) for text in output['solution_lst']]
      assert len(answers) == len(output['score_lst'])
      assert all(isinstance(score, float) for score in output['score_lst'])
      assert output['content'] in output['solution_lst']
      assert output['time'] >= 0
      totals['problems'] += 1
      totals['samples'] += len(answers)
      hits = [answer == right for answer in answers]
      totals['pass_at_1'] += sum(hits) / len(hits)
      totals['any'] += any(hits)
      totals['content'] += boxed(output['content']) == right
      votes = collections.Counter(a for a in answers if a is not None)
      if votes:
        top = max(votes.values())
        winners = [a for a, count in votes.items() if count == top]
        totals['majority'] += (right in winners) / len(winners)
  return {
    name: value
    if name in ('problems', 'samples')
    else value / totals['problems']
    for name, value in totals.items()
  }
