"""Boxes in hostile text; the chat form."""

import dataclasses
import time

import pytest

from metastone_jax.tasks import base, boxed, templates


@pytest.mark.parametrize(
  ('text', 'content'),
  [
    (r'\boxed{5}', '5'),
    (r'\boxed{ + 7 - 1 }', ' + 7 - 1 '),
    (r'first \boxed{1} then \boxed{2} end', '2'),
    (r'\boxed{\frac{1}{2}}', r'\frac{1}{2}'),
    (r'\boxed{a{b{c}d}e} }', 'a{b{c}d}e'),
    (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
    (r'\boxed{\}}', r'\}'),
    (r'\boxed {3}', '3'),
    (r'\boxed{\boxed{4}}', '4'),
    (r'\boxed{}', ''),
    # A last box that is cut is no answer, whatever came before.
    (r'\boxed{1} \boxed{2', None),
    (r'\boxed{{2}', None),
    (r'\boxed{1} \boxed 2', None),
    (r'\boxed', None),
    (r'\boxed{2\}', None),
    ('boxed{1}', None),
    ('', None),
  ],
)
def test_last_boxed(text, content):
  assert boxed.last_boxed(text) == content


@pytest.mark.parametrize(
  'text',
  [
    '\\boxed{' * 300_000,
    '\\boxed{' + '{' * 2_000_000,
    '\\boxed{' + '{}' * 1_000_000,
    '\\boxed{' + '\\' * 2_000_000,
    '\\boxed' * 300_000,
    '{' * 2_000_000,
  ],
)
def test_huge_text_is_linear(text):
  start = time.perf_counter()
  assert boxed.last_boxed(text) is None
  assert time.perf_counter() - start < 10.0


@pytest.mark.parametrize(
  ('response', 'answer'),
  [
    ('steps</think>\n\nA<|im_end|>', '\n\nA'),
    ('steps</think>\n\nA', '\n\nA'),
    ('a</think>b</think>c', 'c'),
    ('steps only', None),
    # What a model writes after its turn does not count.
    ('steps<|im_end|></think>A', None),
    ('s</think>A<|im_end|>B</think>C', 'A'),
    ('</think>', ''),
  ],
)
def test_final_answer_text(response, answer):
  assert base.final_answer_text(response) == answer


def test_prompt_is_the_chat_form_opened_for_thinking():
  assert templates.CHATML_THINK.render('Why?') == (
    '<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n'
  )
  assert templates.render_response(' a.\n\n', 'b') == (
    ' a.\n\n</think>\n\n\\boxed{ b }<|im_end|>'
  )


def test_an_instruction_stands_once():
  form = dataclasses.replace(
    templates.CHATML_THINK, instruction='\nPut it within \\boxed{}.'
  )
  once = form.render('Why?')
  assert once.count('boxed') == 1
  assert form.render('Why?\nPut it within \\boxed{}.') == once
  assert form.render('Why?\nPut it within \\boxed{}.\n').count('boxed') == 1
  assert form.render('Put it within \\boxed{}. Why?').count('boxed') == 2
  assert templates.with_instruction('Why?', '') == 'Why?'
