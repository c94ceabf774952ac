"""What the two sides of the wall say to each other.

Frames are a length of four bytes and JSON text. Values of a program travel as
plain data: None, bool, int, float and str as they are, containers as an object
with one key that names their kind, so that a tuple comes back a tuple. Nothing
else can cross: an object with an `__eq__` of its own stays where it is.
"""

import json
import os
import socket

LENGTH_BYTES = 4


class NotPlainError(Exception):
  """A value, or a text that should hold one, is no plain data."""


def send(channel: socket.socket, message: dict) -> None:
  """Sends one frame."""
  channel.sendall(frame(json.dumps(message).encode()))


def frame(data: bytes) -> bytes:
  """The length of some bytes, and the bytes."""
  return len(data).to_bytes(LENGTH_BYTES, 'little') + data


def receive(channel: socket.socket) -> dict | None:
  """One frame; None where the other side is gone.

  Raises:
    TimeoutError: the channel has a time limit and a read ran into it.
  """
  length = _exactly(channel, LENGTH_BYTES)
  if length is None:
    return None
  data = _exactly(channel, int.from_bytes(length, 'little'))
  return None if data is None else json.loads(data)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
  data = bytearray()
  while len(data) < size:
    try:
      piece = channel.recv(min(size - len(data), 1 << 20))
    except ConnectionError:
      return None
    if not piece:
      return None
    data += piece
  return bytes(data)


def encode(value) -> str:
  """A value as text.

  Subclasses count as what they derive from (a Counter is a dict), arrays and
  numbers of numpy as the lists and numbers they hold.

  Raises:
    NotPlainError: it holds anything else, or is nested too deeply.
  """
  try:
    return json.dumps(_tagged(value))
  except (RecursionError, ValueError, TypeError) as error:
    raise NotPlainError(f'no plain data: {error}') from error


def decode(text: str):
  """The value of a text that `encode` made, or that pretends to be one.

  Raises:
    NotPlainError: it is none.
  """
  try:
    return _untagged(json.loads(text))
  except (RecursionError, ValueError, TypeError) as error:
    raise NotPlainError(f'no plain data: {error}') from error


def _tagged(value):
  if value is None or isinstance(value, bool):
    return value
  if isinstance(value, int):
    return int(value)
  if isinstance(value, float):
    return float(value)
  if isinstance(value, str):
    return str(value)
  if isinstance(value, list):
    return {'list': [_tagged(v) for v in value]}
  if isinstance(value, tuple):
    return {'tuple': [_tagged(v) for v in value]}
  if isinstance(value, set | frozenset):
    return {'set': [_tagged(v) for v in value]}
  if isinstance(value, dict):
    return {'dict': [[_tagged(k), _tagged(v)] for k, v in value.items()]}
  if type(value).__module__ == 'numpy' and hasattr(value, 'tolist'):
    return _tagged(value.tolist())
  raise TypeError(f'a {type(value).__name__}')


def _untagged(value):
  if not isinstance(value, dict):
    if isinstance(value, list):
      raise TypeError('a bare list')
    return value
  ((kind, items),) = value.items()
  if not isinstance(items, list):
    raise TypeError('no items')
  if kind == 'dict':
    return {_untagged(k): _untagged(v) for k, v in items}
  makers = {'list': list, 'tuple': tuple, 'set': set}
  if kind not in makers:
    raise ValueError(f'a {kind}')
  return makers[kind](_untagged(v) for v in items)


def give_descriptor(channel: int, descriptor: int) -> None:
  """Sends a descriptor through the descriptor of a local socket."""
  with socket.socket(fileno=os.dup(channel)) as end:
    socket.send_fds(end, [b'x'], [descriptor])


def take_descriptor(channel: socket.socket) -> int | None:
  """The descriptor that the other side gives; None where it is gone."""
  _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
  return descriptors[0] if descriptors else None
