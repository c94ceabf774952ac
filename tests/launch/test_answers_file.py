"""Questions read, answers kept: line by line, over restarts, or refused."""

import json

import numpy as np
import pytest

from launch import show_answer
from launch.answers_file import AnswersFile, read_questions
from metastone_jax.errors import UserError

QUESTIONS = ['a', 'b', 'c']
SETTINGS = {'seed': 0, 'k': 2}


def _read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_and_their_fields(tmp_path):
  path = tmp_path / 'in.jsonl'
  path.write_text(
    '{"question": "1 + 1?", "answer": 2}\n\n{"prompt": "\u4f60\u597d"}\n'
  )
  assert read_questions(path) == [
    ('1 + 1?', {'answer': 2}),
    ('\u4f60\u597d', {}),
  ]


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'there is no --input'),
    (b'', 'has no question'),
    (b'{"question": "a"}\n{', 'line 2: '),
    (b'{"question": "\xff"}', 'line 1: '),
    (b'[1]', 'line 1: no JSON object'),
    (b'{"text": "a"}', 'question 1: needs a text named question or prompt'),
    (b'{"question": " "}', 'question 1: needs a text'),
    (b'{"question": 3}', 'question 1: needs a text'),
  ],
)
def test_bad_input_is_named(tmp_path, content, message):
  path = tmp_path / 'in.jsonl'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    read_questions(path)


def test_answers_outlive_a_restart(tmp_path):
  path = tmp_path / 'sub' / 'out.jsonl'
  with pytest.raises(KeyboardInterrupt):
    with AnswersFile(path, QUESTIONS, SETTINGS) as file:
      assert not file.done
      file.add(2, {'prompt': 'c', 'x': 1})
      file.add(0, {'prompt': 'a', 'x': 2})
      raise KeyboardInterrupt
  with AnswersFile(path, QUESTIONS, SETTINGS) as file:
    assert file.done == {0, 2}
    file.add(1, {'prompt': 'b', 'x': 3})
  assert _read(path) == [
    {'index': 0, 'prompt': 'a', 'x': 2},
    {'index': 1, 'prompt': 'b', 'x': 3},
    {'index': 2, 'prompt': 'c', 'x': 1},
  ]


def test_fields_of_the_input_do_not_hide_ours(tmp_path):
  path = tmp_path / 'out.jsonl'
  with AnswersFile(path, QUESTIONS, SETTINGS) as file:
    file.add(1, {'index': 10, 'prompt': 'b'})
  with AnswersFile(path, QUESTIONS, SETTINGS) as file:
    assert file.done == {1}


def test_what_another_run_wrote_stays(tmp_path):
  path = tmp_path / 'out.jsonl'
  with AnswersFile(path, QUESTIONS, SETTINGS) as late:
    with AnswersFile(path, QUESTIONS, SETTINGS) as file:
      file.add(0, {'prompt': 'a'})
      file.add(1, {'prompt': 'b'})
    late.add(2, {'prompt': 'c'})
  assert [row['index'] for row in _read(path)] == [0, 1, 2]


def test_a_damaged_settings_file_or_a_folder_is_named(tmp_path):
  path = tmp_path / 'out.jsonl'
  with AnswersFile(path, QUESTIONS, SETTINGS) as file:
    file.add(0, {'prompt': 'a'})
  (tmp_path / 'out.jsonl.settings.json').write_text('{')
  with pytest.raises(UserError, match='settings.json is damaged'):
    AnswersFile(path, QUESTIONS, SETTINGS)
  (tmp_path / 'folder').mkdir()
  with pytest.raises(UserError, match='folder cannot be read|holds answers'):
    AnswersFile(tmp_path / 'folder', QUESTIONS, {})


def test_other_questions_or_settings_are_refused(tmp_path):
  path = tmp_path / 'out.jsonl'
  with AnswersFile(path, QUESTIONS, SETTINGS) as file:
    file.add(1, {'prompt': 'b'})
  before = path.read_bytes()
  with pytest.raises(UserError, match='answers to other questions'):
    AnswersFile(path, ['a', 'x', 'c'], SETTINGS)
  with pytest.raises(UserError, match='drawn with seed=0, not 1'):
    AnswersFile(path, QUESTIONS, SETTINGS | {'seed': 1})
  assert path.read_bytes() == before


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch):
  path = tmp_path / 'out.jsonl'
  with AnswersFile(path, QUESTIONS, SETTINGS) as file:
    file.add(1, {'prompt': 'b'})
  before = path.read_bytes()

  def full(*_):
    raise OSError(28, 'No space left on device')

  with pytest.raises(UserError, match='No space left on device.*stands'):
    with AnswersFile(path, QUESTIONS, SETTINGS) as file:
      monkeypatch.setattr('launch.answers_file.write_bytes_atomic', full)
      file.add(0, {'prompt': 'a'})
  assert path.read_bytes() == before


def test_steps_end_at_their_marks():
  token = np.arange(10, 17)
  mask = np.array([0, 1, 0, 0, 1, 0, 0], bool)
  logit = np.array([0, 2.0, 0, 0, -1.0, 0, 0])
  found = show_answer.steps(token, mask, logit)
  assert [t.tolist() for t, _ in found] == [[10, 11], [12, 13, 14], [15, 16]]
  scores = [score for _, score in found]
  np.testing.assert_allclose(
    scores[:2], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))]
  )
  assert scores[2] is None
