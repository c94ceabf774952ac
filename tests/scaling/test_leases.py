"""Claims: one holder at a time, on a disk and in a bucket; dead ones end."""

import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from metastone_jax.scaling import leases as leases_lib
from tests.launch import object_store

PATIENCE = 60.0


@pytest.fixture(params=['disk', 'bucket'])
def folder(request, tmp_path, monkeypatch):
  if request.param == 'disk':
    yield epath.Path(tmp_path) / 'point'
    return
  with object_store.fake_store(monkeypatch, tmp_path) as store:
    yield epath.Path('gs://bucket/point')
    assert not store.refused


@pytest.fixture
def clock(monkeypatch):
  """The watchers' clock, moved by hand; renewals keep the real one."""
  now = [1000.0]
  monkeypatch.setattr(leases_lib.time, 'monotonic', lambda: now[0])
  return now


def _leases(patience=PATIENCE, host=''):
  """Of this process, or of one on another machine."""
  worker = leases_lib.Worker(host, 1, '1') if host else None
  return leases_lib.Leases(worker, patience=patience)


def _left(folder):
  return sorted(p.name for p in leases_lib.files.children(folder / 'claims'))


def _claim_of(folder, **changes):
  """A claim that somebody else has written."""
  worker = leases_lib.Worker('elsewhere', 1, '1')
  content = {**leases_lib.dataclasses.asdict(worker), 'count': 0, **changes}
  path = folder / 'claims' / 'other.json'
  leases_lib.files.write_json_atomic(path, content)
  return path


def test_one_at_a_time(folder):
  one, two = _leases(), _leases()
  lease = one.claim(folder)
  assert lease is not None and not lease.look()
  assert two.claim(folder) is None and one.claim(folder) is None
  assert _left(folder) == [lease._path.name]  # nothing of who came in vain
  lease.release()
  assert _left(folder) == []
  other = two.claim(folder)
  assert other is not None
  other.release()


def test_two_that_write_at_once_never_both_hold(folder, monkeypatch):
  """Both see an empty folder, then both write, then both look.

  Both withdraw, or one has gone before the other reads what it saw.
  """
  barrier = threading.Barrier(2)

  def in_step(function):
    def called(*args):
      result = function(*args)
      barrier.wait(10)
      return result

    return called

  monkeypatch.setattr(leases_lib, '_write', in_step(leases_lib._write))
  children = in_step(leases_lib.files.children)
  monkeypatch.setattr(leases_lib.files, 'children', children)
  found = []
  threads = [
    threading.Thread(target=lambda: found.append(_leases().claim(folder)))
    for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == 2 and None in found
  for lease in found:
    if lease is not None:
      lease.release()


def test_a_folder_may_vanish_between_two_looks(folder, monkeypatch):
  """A bucket's folder goes with its last object, which another one deletes."""
  lease = _leases().claim(folder)
  exists = type(folder).exists

  def exists_and_goes(path):
    found = exists(path)
    if path.name == 'claims' and found:
      lease.release()
      monkeypatch.setattr(type(folder), 'exists', exists)
      if folder.joinpath('claims').exists():  # a disk keeps it
        folder.joinpath('claims').rmtree()
    return found

  monkeypatch.setattr(type(folder), 'exists', exists_and_goes)
  other = _leases().claim(folder)
  assert other is not None
  other.release()


def test_many_in_a_race_never_overlap(folder):
  inside, most, turns = [0], [0], [0]
  lock = threading.Lock()

  def work(seed):
    leases, chance = _leases(), random.Random(seed)
    done, deadline = 0, time.monotonic() + 60
    while done < 4 and time.monotonic() < deadline:
      lease = leases.claim(folder)
      if lease is None:
        time.sleep(chance.random() * 0.01)
        continue
      with lock:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
      time.sleep(0.002)
      with lock:
        inside[0] -= 1
        turns[0] += 1
      lease.release()
      done += 1

  threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert most == [1] and turns == [20]


def test_a_process_of_this_machine_keeps_its_claim_while_it_lives(
  folder, clock
):
  """However silent: a signal may have stopped it, and it will go on."""
  lease, watcher = _leases().claim(folder), _leases()
  for _ in range(3):
    assert watcher.claim(folder) is None and not lease.look()
    clock[0] += PATIENCE + 1
  lease.release()
  lease = watcher.claim(folder)
  assert lease is not None
  lease.release()


def test_a_claim_of_a_dead_process_ends_at_once(folder):
  process = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1)
  me = leases_lib.Worker.this()
  started = leases_lib._started(process.pid)
  assert started.isdigit()
  path = _claim_of(folder, host=me.host, pid=process.pid, started=started)
  assert _leases().claim(folder) is None  # it lives
  process.kill()
  assert leases_lib._started(process.pid) in ('', started)
  os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
  # A zombie holds nothing, though its number is not free yet.
  lease = _leases().claim(folder)
  assert lease is not None and not path.exists()
  lease.release()
  process.communicate()


def test_a_number_of_a_process_that_came_again_is_another_process(folder):
  me = leases_lib.Worker.this()
  _claim_of(folder, host=me.host, pid=me.pid, started='12')
  lease = _leases().claim(folder)
  assert lease is not None
  lease.release()


def test_silence_on_the_clock_of_the_watcher_ends_a_claim(folder, clock):
  watcher = _leases()
  _claim_of(folder)
  assert watcher.claim(folder) is None
  clock[0] += PATIENCE - 1
  assert watcher.claim(folder) is None
  _claim_of(folder, count=1)  # renewed: patience begins anew
  clock[0] += PATIENCE - 1
  assert watcher.claim(folder) is None
  clock[0] += PATIENCE - 1
  assert watcher.claim(folder) is None
  # Who comes new does not know since when it is silent.
  assert _leases().claim(folder) is None
  clock[0] += 2
  lease = watcher.claim(folder)
  assert lease is not None
  lease.release()


def test_who_was_given_up_finds_out_and_stays_out(folder, clock):
  sleeper, watcher, third = _leases(), _leases(host='b'), _leases(host='c')
  lost = sleeper.claim(folder)
  assert watcher.claim(folder) is None
  clock[0] += PATIENCE + 1
  held = watcher.claim(folder)
  assert held is not None and not held.look()
  # A renewal that was under way brings the file back, and changes nothing.
  leases_lib._write(lost._path, sleeper.worker, 5)
  assert lost.look() and lost.is_lost() and not held.look()
  assert third.claim(folder) is None
  held.release()
  lease = third.claim(folder)
  assert lease is not None
  lost.release()
  assert not lease.look()
  lease.release()


def test_given_up_before_it_looked(folder, clock, monkeypatch):
  """It wrote, slept, and everything happened meanwhile."""
  watcher = _leases(host='b')
  write = leases_lib._write

  def sleepy(path, *args):
    write(path, *args)
    monkeypatch.setattr(leases_lib, '_write', write)
    assert watcher.claim(folder) is None
    clock[0] += PATIENCE + 1
    lease = watcher.claim(folder)
    assert lease is not None
    lease.release()

  monkeypatch.setattr(leases_lib, '_write', sleepy)
  assert _leases().claim(folder) is None


def test_a_thread_renews(folder, monkeypatch):
  lease = _leases(patience=0.3).claim(folder)
  deadline = time.monotonic() + 60

  def count():
    assert time.monotonic() < deadline
    time.sleep(0.01)
    return json.loads(lease._path.read_text())['count']

  # Longer than patience on the watcher's clock, which stands still until a
  # renewal is there, yet never given up; and a loss is noticed unasked.
  watcher, now = _leases(patience=0.3), [0.0]
  for _ in range(4):
    with monkeypatch.context() as patch:
      patch.setattr(leases_lib.time, 'monotonic', lambda: now[0])
      assert watcher.claim(folder) is None
    seen = count()  # or what the watcher saw is older still
    while count() == seen:
      pass
    now[0] += 1.0
  leases_lib.files.write_text_atomic(leases_lib._void(lease._path), '')
  while not lease.is_lost():
    assert time.monotonic() < deadline
    time.sleep(0.02)
  lease.release()
