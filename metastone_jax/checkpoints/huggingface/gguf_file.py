"""The GGUF container: metadata, the table of tensors, rows as float32.

Nothing here knows a model. The header is read by this file itself, not by
`gguf.GGUFReader`: every length is checked against the bytes that are left, so
a damaged file is an error at once (that class may loop for ever on one), and a
vocabulary of 150,000 tokens opens in a fraction of its time. The block formats
and their dequantisation come from the `gguf` package.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2
and 3, little endian).
"""

import dataclasses
import math
import struct
import threading
from typing import Any

import numpy as np
from etils import epath

from metastone_jax.errors import UserError

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32  # bytes
_MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
# Value type number -> format of `struct`, which is that of numpy as well.
_SCALARS = {
  0: '<B',
  1: '<b',
  2: '<H',
  3: '<h',
  4: '<I',
  5: '<i',
  6: '<f',
  7: '<?',
  10: '<Q',
  11: '<q',
  12: '<d',
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """Where a tensor lies, and as what.

  Attributes:
    shape: slowest dimension first, as numpy has it; GGUF lists the reverse.
    kind: its gguf.GGMLQuantizationType.
    offset: of its first byte in the file.
    row_bytes: of one row, that is of the last dimension.
  """

  shape: tuple[int, ...]
  kind: Any
  offset: int
  row_bytes: int

  @property
  def rows(self) -> int:
    """Rows of the tensor seen as a matrix."""
    return math.prod(self.shape[:-1])


class GGUFFile:
  """An open GGUF file.

  Attributes:
    name: its path, for messages.
    metadata: key -> number, bool, str or list of them.
    entries: name -> Entry of every tensor.
  """

  def __init__(self, path: epath.PathLike):
    """Opens a file and checks that every tensor lies inside it.

    Args:
      path: the .gguf file, local or remote.

    Raises:
      UserError: no such file, no GGUF file, a damaged or truncated one, a
        version or tensor type that is not supported, or no `gguf` package.
    """
    self.name = str(path)
    self._gguf = _import_gguf()
    self._lock = threading.Lock()  # one position in the file, many readers
    try:
      self._file = epath.Path(path).open('rb')
      self._size = self._file.seek(0, 2)
    except OSError as error:
      raise UserError(
        f'GGUF file {self.name} cannot be opened ({error.strerror or error}); '
        'give the path of a .gguf file'
      ) from error
    try:
      self._file.seek(0)
      self._read_header()
    except BaseException:
      self._file.close()
      raise

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """Rows `start:stop` of a tensor seen as a matrix: float32[n, last]."""
    entry = self.entries[name]
    count = (stop - start) * entry.row_bytes
    data = np.empty(count, np.uint8)
    view, done = memoryview(data), 0
    with self._lock:
      self._file.seek(entry.offset + start * entry.row_bytes)
      while done < count:
        got = self._file.readinto(view[done:])
        if not got:
          raise self._damaged(f'it ends inside tensor {name}')
        done += got
    return self._gguf.quants.dequantize(
      data.reshape(stop - start, entry.row_bytes), entry.kind
    )

  def _read_header(self) -> None:
    magic = self._file.read(4)
    if magic != _MAGIC:
      raise UserError(
        f'{self.name} is not a GGUF file (it starts with {magic!r}, not '
        f'{_MAGIC!r}); give the path of a .gguf file'
      )
    version = self._scalar('<I')
    if version not in _VERSIONS:
      kind = 'big-endian' if version & 0xFFFF == 0 else f'version {version}'
      raise UserError(
        f'{self.name} is a {kind} GGUF file; versions 2 and 3, little-endian, '
        'are supported: convert the model again with a current llama.cpp'
      )
    tensors, keys = self._scalar('<Q'), self._scalar('<Q')
    self.metadata: dict[str, Any] = {}
    for _ in range(keys):
      key = self._name()
      if key in self.metadata:
        raise self._damaged(f'key {key} occurs twice')
      self.metadata[key] = self._value(self._scalar('<I'))
    table = [self._tensor_row() for _ in range(tensors)]
    alignment = self.metadata.get('general.alignment', _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
      raise self._damaged(f'general.alignment={alignment!r}')
    start = -(-self._file.tell() // alignment) * alignment
    self.entries: dict[str, Entry] = {}
    for name, shape, number, offset in table:
      if name in self.entries:
        raise self._damaged(f'tensor {name} occurs twice')
      self.entries[name] = self._entry(name, shape, number, start + offset)

  def _tensor_row(self) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type number and offset of the next tensor."""
    name = self._name()
    count = self._scalar('<I')
    if not 1 <= count <= _MAX_DIMENSIONS:
      raise self._damaged(f'tensor {name} has {count} dimensions')
    shape = tuple(self._scalar('<Q') for _ in range(count))[::-1]
    return name, shape, self._scalar('<I'), self._scalar('<Q')

  def _entry(self, name, shape, number, offset) -> Entry:
    """An Entry whose type is known and whose bytes are all in the file."""
    constants = self._gguf.constants
    try:
      kind = constants.GGMLQuantizationType(number)
    except ValueError as error:
      raise UserError(
        f'{self.name}: tensor {name} has type number {number}, which the '
        'installed gguf package does not know; upgrade gguf, or use a file '
        'quantised as Q8_0'
      ) from error
    block, block_bytes = constants.GGML_QUANT_SIZES[kind]
    try:
      probe = np.zeros((1, block_bytes), np.uint8)
      self._gguf.quants.dequantize(probe, kind)
    except NotImplementedError as error:
      raise UserError(
        f'{self.name}: tensor {name} is {kind.name}, which the gguf package '
        'cannot dequantise; use a file in F16, BF16 or Q8_0'
      ) from error
    if shape[-1] % block or min(shape) < 1:
      raise self._damaged(
        f'tensor {name} of shape {shape} does not fit blocks of {block}'
      )
    entry = Entry(shape, kind, offset, shape[-1] // block * block_bytes)
    end = offset + entry.rows * entry.row_bytes
    if end > self._size:
      raise self._damaged(
        f'tensor {name} ends at byte {end:,} of {self._size:,}'
      )
    return entry

  def _value(self, kind: int) -> Any:
    """The value of a key, of a type number."""
    if kind == _STRING:
      return self._string()
    if kind in _SCALARS:
      value = self._scalar(_SCALARS[kind])
      # The shortest decimal of a float32: 1e-05, not 9.999999747378752e-06.
      return float(str(np.float32(value))) if kind == 6 else value
    if kind != _ARRAY:
      raise self._damaged(f'a value has type number {kind}')
    item, count = self._scalar('<I'), self._scalar('<Q')
    if item == _STRING:
      return [self._string() for _ in range(count)]
    if item not in _SCALARS:
      raise self._damaged(f'an array has items of type number {item}')
    width = struct.calcsize(_SCALARS[item])
    return np.frombuffer(self._take(count * width), _SCALARS[item]).tolist()

  def _string(self) -> str:
    try:
      return self._take(self._scalar('<Q')).decode('utf-8')
    except UnicodeDecodeError as error:
      raise self._damaged('a text in its header is no UTF-8') from error

  def _name(self) -> str:
    """A key or the name of a tensor; messages show it."""
    name = self._string()
    if not name.isprintable():
      raise self._damaged(f'it has the name {name!r:.60}')
    return name

  def _scalar(self, form: str) -> Any:
    return struct.unpack(form, self._take(struct.calcsize(form)))[0]

  def _take(self, count: int) -> bytes:
    left = self._size - self._file.tell()
    if count > left:
      raise self._damaged(
        f'its header needs {count:,} more bytes where {left:,} are left'
      )
    return self._file.read(count)

  def _damaged(self, what: str) -> UserError:
    return UserError(
      f'GGUF file {self.name} is truncated or damaged: {what}; copy it again'
    )


def _import_gguf() -> Any:
  """The optional package, or the error that says how to get it."""
  try:
    import gguf
  except ImportError as error:
    raise UserError(
      'reading a GGUF file needs the gguf package; install it with: pip '
      "install 'metastone_jax[gguf]'"
    ) from error
  return gguf
