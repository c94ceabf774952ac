"""All processes meet, or each learns in one line who is missing."""

import socket
import threading

import pytest

from metastone_jax.errors import UserError
from metastone_jax.parallel import rendezvous
from tests.launch.several import free_port


def _meet(processes, timeout_s=1.0, expected=None):
  """Outcomes of so many processes, played by threads; (number, count) each."""
  address = f'127.0.0.1:{free_port()}'
  outcomes = [None] * len(processes)

  def one(place, number, count):
    try:
      outcomes[place] = rendezvous.meet(address, count, number, timeout_s)
    except UserError as error:
      outcomes[place] = str(error)

  threads = [
    threading.Thread(target=one, args=(place, number, count))
    for place, (number, count) in enumerate(processes)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return outcomes


def test_all_learn_all_host_names():
  name = socket.gethostname()
  assert _meet([(2, 3), (0, 3), (1, 3)], 10) == [[name] * 3] * 3


def test_the_missing_are_named_to_all():
  found = _meet([(0, 4), (2, 4)], 0.7)
  name = socket.gethostname()
  for message in found:
    assert '2 of 4 processes did not start within 0.7 s' in message
    assert 'process 1, 3 missing' in message
    assert f'there are 0 on {name}, 2 on {name}' in message
    assert '--num_processes=4' in message


def test_no_process_0():
  (message,) = _meet([(1, 2)], 0.5)
  assert 'did not reach process 0 at 127.0.0.1:' in message
  assert 'within 0.5 s (Connection refused)' in message


def test_two_with_one_number():
  found = _meet([(0, 3), (1, 3), (1, 3)], 5)
  assert all('two processes have --process_id=1' in text for text in found)


def test_two_counts():
  found = _meet([(0, 2), (1, 3)], 5)
  assert all('expects 3 processes and process 0' in text for text in found)


def test_a_stranger_does_not_disturb():
  port = free_port()
  outcome = []

  def primary():
    outcome.append(rendezvous.meet(f'127.0.0.1:{port}', 2, 0, 10))

  thread = threading.Thread(target=primary)
  thread.start()
  for _ in range(100):
    try:
      with socket.create_connection(('127.0.0.1', port), timeout=1) as stranger:
        stranger.sendall(b'GET / HTTP/1.0\n')
      break
    except OSError:
      threading.Event().wait(0.05)
  rendezvous.meet(f'127.0.0.1:{port}', 2, 1, 10)
  thread.join()
  assert len(outcome[0]) == 2


def test_port_in_use():
  with socket.socket() as other:
    other.bind(('', 0))
    other.listen()
    with pytest.raises(UserError, match=r'cannot listen on port \d+ \(Address'):
      rendezvous.meet(f'127.0.0.1:{other.getsockname()[1]}', 2, 0, 1)


@pytest.mark.parametrize('text', ['here', 'host:', ':80', 'h:0', 'h:99999'])
def test_addresses(text):
  with pytest.raises(UserError, match='is no HOST:PORT'):
    rendezvous.split_address(text)
  assert rendezvous.split_address('[::1]:80') == ('::1', 80)
