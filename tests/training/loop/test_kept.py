"""Kept responses: what was added is there again, whoever wrote it."""

import pytest
from etils import epath

from metastone_jax.errors import UserError
from metastone_jax.training import loop
from metastone_jax.training.loop import kept as lib


def _response(problem, number, **changes):
  return loop.Kept(
    **{
      'problem': problem,
      'number': number,
      'text': 'ü\n\u2028"',
      'score': 0.1 + 1e-17 + problem / 3,
      'finished': bool(number % 2),
      'tokens': 7,
      'thinking': 3,
      'marks': 1,
      'flops': 1e30 / 3,
      'seconds': 0.25,
      **changes,
    }
  )


def test_what_was_added_is_found_again(tmp_path):
  folder = tmp_path / 'deep' / 'responses'
  with loop.KeptResponses(folder) as kept:
    assert kept.found == {}
    first = [_response(0, 0), _response(2, 1, token_ids=[3, 4])]
    for response in first:
      kept.add(response)
    kept.flush()
    kept.add(_response(1, 0))
  assert len(list(folder.iterdir())) == 2  # each written once
  with loop.KeptResponses(folder) as again:
    assert again.found == {
      (r.problem, r.number): r for r in (*first, _response(1, 0))
    }
    # Two processes write beside each other.
    with loop.KeptResponses(folder) as other:
      other.add(_response(5, 5))
    again.add(_response(6, 6))
  assert len(loop.KeptResponses(folder).found) == 5


def test_an_error_leaves_what_was_added(tmp_path):
  with pytest.raises(KeyboardInterrupt), loop.KeptResponses(tmp_path) as kept:
    kept.add(_response(0, 0))
    raise KeyboardInterrupt
  assert set(loop.KeptResponses(tmp_path).found) == {(0, 0)}


def test_segments_get_rarer(tmp_path, monkeypatch):
  """At least 10 s, then a fiftieth of all time so far."""
  now = [0.0]
  monkeypatch.setattr(lib.time, 'monotonic', lambda: now[0])
  with loop.KeptResponses(tmp_path) as kept:
    for second in range(20_000):
      now[0] = float(second)
      kept.add(_response(second, 0))
    written = len(list(tmp_path.iterdir()))
  # 50 in the first 500 s, then one for each growth by a fiftieth.
  assert 150 < written < 260
  assert len(loop.KeptResponses(tmp_path).found) == 20_000


@pytest.mark.parametrize('line', ['{', '[1]', '{"problem": 1}', 'null'])
def test_a_damaged_segment_is_named(tmp_path, line):
  (tmp_path / 'a.jsonl').write_text(line)
  with pytest.raises(UserError, match=r'a\.jsonl is no segment .* remove it'):
    loop.KeptResponses(tmp_path)


def test_an_unwritable_folder_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  kept = loop.KeptResponses(epath.Path(tmp_path) / 'none')
  kept._folder = epath.Path(tmp_path / 'file' / 'in')
  kept.add(_response(0, 0))
  with pytest.raises(UserError, match='those before them stand'):
    kept.flush()
