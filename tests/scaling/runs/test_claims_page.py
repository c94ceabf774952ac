"""The page of claims, from workdirs of synthetic arms."""

import json

import pytest

from metastone_jax.errors import UserError
from metastone_jax.scaling.runs import claims_page
from tests.scaling import claims_parts as parts

SKILLS = {
  'full': 1.5,
  'scale-1e-4': 0.8,
  'frozen': 0.8,
  'full-spr': 1.5,
  'frozen-spr': 0.3,
  'prm': 1.6,
  'outcome': 0.5,
  'self-certainty': 0.2,
  'log-prob': 0.0,
}


def leave(workdir, set_name, arms, seeds, *, done=True, **sizes):
  """Points as the sweep leaves them."""
  for name, skill in arms.items():
    for seed in seeds:
      folder = workdir / 'points' / f'{set_name}-{name}-s{seed}'
      folder.mkdir(parents=True)
      arm = parts.arm(name, seed, skill, set_name=set_name, **sizes)
      arm.judged.save(folder / 'judged.npz')
      parts.about(name, seed, set_name).save(folder / 'about.json')
      if done:
        text = json.dumps({'rows': [], 'seconds': 61.0})
        (folder / 'rows.json').write_text(text)


def config_of(arms, seeds):
  return {
    'points': [
      {
        'name': f'tiny-{arm}-s{seed}',
        'kind': 'arm',
        'set': 'tiny',
        'arm': arm,
        'seed': seed,
      }
      for arm in arms
      for seed in seeds
    ],
    'options': {
      'k': 8,
      'commands': {'tiny': 'run tiny', 'smollm2': 'run smollm2'},
    },
  }


def write(tmp_path, config):
  page = tmp_path / 'docs' / 'claims.md'
  written = claims_page.write(config, tmp_path, page, [], command='the command')
  return page, written


def test_page_of_a_set_that_is_half_done(tmp_path):
  leave(tmp_path, 'tiny', SKILLS, [0, 1])
  leave(tmp_path, 'tiny', {'layer-1': 0.1}, [0], done=False)
  base = tmp_path / 'points' / 'tiny-base-s0'
  base.mkdir()
  (base / 'rows.json').write_text('{"rows": [], "seconds": 600}')
  page, written = write(tmp_path, config_of([*SKILLS, 'layer-1'], [0, 1, 2]))
  assert written[-1].name == 'claims.md'
  assert all(path.exists() for path in written)
  text = page.read_text()
  for path in written[:-1]:
    assert f']({path.name})' in text
  assert 'the command' in text
  assert '18 arms are done of 30 planned (2 of 3 seeds)' in text
  assert 'frozen (seed 2)' in text
  assert 'layer-1 (seed 0, 1, 2)' in text
  # 18 arms of 61 s, and 600 s of the policy.
  assert 'Time of all workers together: 28 min' in text
  assert 'policies and their samples 10 min' in text
  line = next(x for x in text.splitlines() if 'behind block 1 |' in x)
  assert '| not run |' in line
  line = next(x for x in text.splitlines() if 'beats the majority vote |' in x)
  assert '| **supported**' in line
  assert 'This set has not been run. The command: `run smollm2`.' in text
  # SPEC 8: 99.69 % saved at 1.5B.
  assert '| 1.5B |' in text
  assert '99.7' in text


def test_both_sets_whichever_the_config_names(tmp_path):
  leave(tmp_path, 'tiny', {'full': 1.0, 'prm': 1.0}, [0])
  leave(tmp_path, 'smollm2', {'scale-1e-4': 1.0, 'prm': 1.0}, [0], samples=4)
  page, written = write(tmp_path, config_of([], []))
  text = page.read_text()
  assert 'has not been run' not in text
  assert {p.name for p in written} >= {
    'claims_tiny_k.png',
    'claims_smollm2_k.png',
  }
  assert '2 arms of 1 seed are done.' in text
  # Four samples a problem: best-of-4.
  assert 'best-of-4, %' in text
  assert 'k = 4.' in text


def test_notes_are_appended_and_the_page_is_the_same_again(tmp_path):
  leave(tmp_path, 'tiny', {'full': 1.0}, [0])
  page, _ = write(tmp_path, config_of(['full'], [0]))
  plain = page.read_text()
  notes = '## What surprised\n\nNothing | yet.'
  (page.parent / 'claims_notes.md').write_text(notes + '\n')
  write(tmp_path, config_of(['full'], [0]))
  assert page.read_text() == plain + '\n' + notes + '\n'


def test_nothing_done_yet(tmp_path):
  page, written = write(tmp_path, config_of(['full'], [0]))
  assert written == [page]
  text = page.read_text()
  assert 'The command: `run tiny`.' in text
  assert 'The command: `run smollm2`.' in text


def test_policies_that_solve_nothing_have_no_auc(tmp_path):
  leave(tmp_path, 'tiny', {'full': 1.0, 'prm': 1.0}, [0])
  for folder in (tmp_path / 'points').iterdir():
    arm = parts.arm('full', 0, 1.0).judged
    wrong = parts.judged(arm.correct_PN & False, arm.step_logit_PNS)
    wrong.save(folder / 'judged.npz')
  text = write(tmp_path, config_of(['full'], [0]))[0].read_text()
  assert 'undefined: no problem has right and wrong samples' in text


def test_what_cannot_be_read_is_named(tmp_path):
  leave(tmp_path, 'tiny', {'full': 1.0}, [0])
  folder = tmp_path / 'points' / 'tiny-full-s0'
  (folder / 'rows.json').write_text('{}')
  with pytest.raises(UserError, match=r'rows\.json: not the table of a point'):
    claims_page.read_arms(tmp_path)
  (folder / 'rows.json').write_text('{"rows": [], "seconds": 1}')
  twin = tmp_path / 'points' / 'tiny-other-s0'
  twin.mkdir()
  for path in folder.iterdir():
    (twin / path.name).write_bytes(path.read_bytes())
  with pytest.raises(UserError, match='arm full of seed 0 is there twice'):
    claims_page.read_arms(tmp_path)
  (folder / 'judged.npz').write_bytes(b'half')
  with pytest.raises(UserError, match=r'judged\.npz: not a whole file'):
    claims_page.read_arms(tmp_path)
