"""The page of claims, from workdirs of synthetic arms."""

import pytest
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.scaling import plan, table
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


def point(set_name, arm, seed, kind='arm'):
  """A point as configs/sweeps/claims.py gives it."""
  return {
    'name': f'{set_name}-{arm}-s{seed}',
    'kind': kind,
    'needs': [],
    'set': set_name,
    'arm': arm,
    'seed': seed,
  }


@pytest.fixture(name='workdir')
def _workdir(tmp_path):
  return epath.Path(tmp_path)


def leave(workdir, set_name, arms, seeds, *, done=True, **sizes):
  """Points as the sweep leaves them."""
  several = [point(set_name, name, seed) for name in arms for seed in seeds]
  plan.keep(plan.Plan.of(several), workdir)
  for one in several:
    folder = plan.point_folder(workdir, one['name'])
    name, seed = one['arm'], one['seed']
    arm = parts.arm(name, seed, arms[name], set_name=set_name, **sizes)
    arm.judged.save(folder / 'judged.npz')
    arm.about.save(folder / 'about.json')
    if done:
      table.finish_point(folder, [], {'seconds': 9.0, 'device': 'cpu'})


def config_of(arms, seeds):
  return {
    'points': [point('tiny', arm, seed) for arm in arms for seed in seeds],
    'options': {
      'k': 8,
      'commands': {'tiny': 'run tiny', 'smollm2': 'run smollm2'},
    },
  }


def write(workdir, config):
  page = workdir / 'docs' / 'claims.md'
  written = claims_page.write(config, workdir, page, [], command='the command')
  return page, written


def test_page_of_a_set_that_is_half_done(workdir):
  leave(workdir, 'tiny', SKILLS, [0, 1])
  leave(workdir, 'tiny', {'layer-1': 0.1}, [0], done=False)
  base = point('tiny', 'base', 0, kind='base')
  plan.keep(plan.Plan.of([base]), workdir)
  base = plan.point_folder(workdir, 'tiny-base-s0')
  table.finish_point(base, [{'steps': 3}], {'seconds': 600.0, 'device': 'cpu'})
  page, written = write(workdir, config_of([*SKILLS, 'layer-1'], [0, 1, 2]))
  assert written[-1].name == 'claims.md'
  assert all(path.exists() for path in written)
  text = page.read_text()
  for path in written[:-1]:
    assert f']({path.name})' in text
  assert 'the command' in text
  assert 'Arms done: 18 of 30; seeds: 2 of 3.' in text
  assert 'frozen (seed 2)' in text
  assert 'layer-1 (seed 0, 1, 2)' in text
  # 18 arms of 61 s, and 600 s of the policy.
  assert 'Time of all workers together: 28 min' in text
  assert 'policies 10 min' in text
  assert 'Points were done on: cpu.' in text
  line = next(x for x in text.splitlines() if 'behind block 1 |' in x)
  assert '| not run |' in line
  line = next(x for x in text.splitlines() if 'beats the majority vote |' in x)
  assert '| **supported**' in line
  # Every trace has as many steps, so the product has the mean's order.
  line = next(x for x in text.splitlines() if 'beats the product |' in x)
  assert '| **unclear** (no problem differs) |' in line
  assert 'This set has not been run. The command: `run smollm2`.' in text
  # SPEC 8: 99.69 % saved at 1.5B.
  assert '| 1.5B |' in text
  assert '99.7' in text


def test_both_sets_whichever_the_config_names(workdir):
  leave(workdir, 'tiny', {'full': 1.0, 'prm': 1.0}, [0])
  leave(workdir, 'smollm2', {'scale-1e-4': 1.0, 'prm': 1.0}, [0], samples=4)
  page, written = write(workdir, config_of([], []))
  text = page.read_text()
  assert 'has not been run' not in text
  assert {p.name for p in written} >= {
    'claims_tiny_k.png',
    'claims_smollm2_k.png',
  }
  assert 'Arms done: 2 of 2; seeds: 1 of 1.' in text
  # Four samples a problem: best-of-4.
  assert 'best-of-4, %' in text
  assert 'k = 4.' in text


def test_notes_are_appended_and_the_page_is_the_same_again(workdir):
  leave(workdir, 'tiny', {'full': 1.0}, [0])
  page, _ = write(workdir, config_of(['full'], [0]))
  plain = page.read_text()
  notes = '## What surprised\n\nNothing | yet.'
  (page.parent / 'claims_notes.md').write_text(notes + '\n')
  write(workdir, config_of(['full'], [0]))
  assert page.read_text() == plain + '\n' + notes + '\n'


def test_nothing_done_yet(workdir):
  page, written = write(workdir, config_of(['full'], [0]))
  assert written == [page]
  text = page.read_text()
  assert 'The command: `run tiny`.' in text
  assert 'The command: `run smollm2`.' in text


def test_policies_that_solve_nothing_have_no_auc(workdir):
  leave(workdir, 'tiny', {'full': 1.0, 'frozen': 1.0, 'prm': 1.0}, [0])
  for folder in (workdir / 'points').iterdir():
    arm = parts.arm('full', 0, 1.0).judged
    wrong = parts.judged(arm.correct_PN & False, arm.step_logit_PNS)
    wrong.save(folder / 'judged.npz')
  text = write(workdir, config_of(['full'], [0]))[0].read_text()
  assert 'undefined: no problem has right and wrong samples' in text


def test_bad_options_are_refused_before_work():
  good = config_of(['full'], [0])
  claims_page.check(good)
  commands = good['options']['commands']
  for options, message in (
    ({'k': 0, 'commands': commands}, 'options.k=0: samples an answer'),
    ({'k': 2.5, 'commands': commands}, r'options.k=2\.5'),
    ({'k': 8}, 'options.commands.tiny=None: must be the command'),
    ({'k': 8, 'commands': {'tiny': 'x'}}, 'options.commands.smollm2=None'),
    ({}, 'options.k=None'),
    (None, 'options.k=None'),
  ):
    with pytest.raises(UserError, match=message):
      claims_page.check({**good, 'options': options})


def test_what_cannot_be_read_is_named(workdir):
  leave(workdir, 'tiny', {'full': 1.0}, [0])
  folder = plan.point_folder(workdir, 'tiny-full-s0')
  config = config_of(['full'], [0])
  (folder / 'times.json').write_text('{}')
  with pytest.raises(UserError, match=r'times\.json: does not say how long'):
    write(workdir, config)
  table.finish_point(folder, [], {'seconds': 1.0, 'device': 'cpu'})
  twin = plan.point_folder(workdir, 'twin')
  twin.mkdir()
  for path in folder.iterdir():
    (twin / path.name).write_bytes(path.read_bytes())
  text = (twin / 'point.json').read_text().replace('tiny-full-s0', 'twin')
  (twin / 'point.json').write_text(text)
  with pytest.raises(UserError, match='arm full of seed 0 is there twice'):
    write(workdir, config)
  (folder / 'judged.npz').write_bytes(b'half')
  with pytest.raises(UserError, match=r'judged\.npz: not a whole file'):
    write(workdir, config)
  assert not (workdir / 'docs' / 'claims.md').exists()
