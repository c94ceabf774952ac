"""The house rules on imports, read from the source text; nothing is imported.

A "room" is a folder (or one file) with one purpose. `ROOMS` says which other
rooms each may import; a room may always import itself, and `EVERYONE` may be
imported by all. Imports inside functions count too: an arrow that points
upward is wrong whenever it is followed. A room that is not in the table is a
violation, so that a new one is a decision.

`check_tree(root)` returns one line for each violation:
  path:line: what is wrong.
"""

import ast
import collections
import dataclasses
import fnmatch
import pathlib
import sys

MAX_LINES = 450

# Folders below the root whose code is checked. `tests` may import anything.
TOP_FOLDERS = ('kernels', 'metastone_jax', 'launch', 'configs')

EVERYONE = frozenset({'errors', 'telemetry'})

# room -> the rooms it may import. The order is bottom to top.
ROOMS = {
  'root': set(),  # metastone_jax/__init__.py
  'errors': set(),
  'grid': set(),  # lists of small dicts: what a sweep consists of
  'telemetry': set(),
  'kernels': set(),
  'parallel': set(),
  'sprm': set(),
  'policy': set(),
  'tasks': set(),
  'model': {'kernels', 'parallel'},
  'data': {'tasks'},
  'sampling': {'model', 'sprm', 'parallel'},
  'checkpoints': {'model', 'parallel'},
  'training': {'model', 'sprm', 'policy', 'parallel', 'kernels'},
  'evaluation': {'tasks', 'sampling', 'sprm'},
  'scaling': {'evaluation'},
}
ROOMS['training.loop'] = set(ROOMS)
ROOMS['scaling.runs'] = set(ROOMS)
ROOMS['compile_check'] = set(ROOMS)
ROOMS['launch'] = set(ROOMS)
ROOMS['configs'] = {'grid'}

# Third-party packages, where a room's list is closed. absl is for logging.
THIRD_PARTY = {
  'root': set(),
  'errors': set(),
  'grid': set(),
  'kernels': {'jax', 'numpy', 'absl'},
  'parallel': {'jax', 'numpy', 'absl'},
  'configs': {'ml_collections'},
}

# No run-time code needs these ...
HEAVY = frozenset({'torch', 'transformers', 'tensorflow'})
# ... except the converters, which import them when a user asks for one.
HEAVY_INSIDE_FUNCTIONS = ('metastone_jax/checkpoints/*',)


@dataclasses.dataclass(frozen=True)
class Import:
  """One import of one module, as found in a file."""

  module: str  # absolute dotted name
  names: tuple[str, ...]  # the x, y of `from module import x, y`
  line: int
  lazy: bool  # inside a function: not run by importing the file


def module_name(path: str) -> str:
  """The dotted name of a file given relative to the root."""
  parts = path.removesuffix('.py').split('/')
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def room_of(module: str) -> str | None:
  """The room of one of this project's modules; None if it has none."""
  parts = module.split('.')
  if parts[0] in ('kernels', 'launch', 'configs'):
    return parts[0]
  if parts == ['metastone_jax']:
    return 'root'
  if parts[:2] == ['metastone_jax', 'training'] and len(parts) > 2:
    return 'training.loop' if parts[2].startswith('loop') else 'training'
  if parts[:3] == ['metastone_jax', 'scaling', 'runs']:
    return 'scaling.runs'
  return parts[1] if parts[1] in ROOMS else None


def python_files(root: pathlib.Path, *folders: str) -> list[str]:
  """Paths of all Python files of the folders, relative to the root."""
  found = []
  for folder in folders:
    found += (
      p.relative_to(root).as_posix() for p in root.glob(f'{folder}/**/*.py')
    )
  return sorted(found)


def imports_of(source: str, path: str) -> list[Import]:
  """All imports of a file, also those spelled `import_module('x')`."""
  package = module_name(path).split('.')
  if not path.endswith('__init__.py'):
    package = package[:-1]
  found = []

  def visit(node, lazy):
    if isinstance(node, ast.Import):
      found.extend(Import(a.name, (), node.lineno, lazy) for a in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = package[: len(package) - node.level + 1] if node.level else []
      module = '.'.join(base + ([node.module] if node.module else []))
      names = tuple(alias.name for alias in node.names)
      found.append(Import(module, names, node.lineno, lazy))
    elif isinstance(node, ast.Call) and node.args:
      called = getattr(node.func, 'attr', getattr(node.func, 'id', None))
      target = getattr(node.args[0], 'value', None)
      if called in ('import_module', '__import__') and isinstance(target, str):
        found.append(Import(target, (), node.lineno, lazy))
    lazy = lazy or isinstance(
      node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    )
    for child in ast.iter_child_nodes(node):
      visit(child, lazy)

  visit(ast.parse(source, path), False)
  return found


def _targets(item: Import, modules: set[str]) -> list[str]:
  """The modules an import names: of `from a import b`, a.b where it is one."""
  if not item.names:
    return [item.module]
  names = (f'{item.module}.{name}' for name in item.names)
  return sorted({name if name in modules else item.module for name in names})


def _check_import(path, room, target, lazy):
  """Yields what is wrong with one imported module."""
  top = target.split('.')[0]
  if top in HEAVY:
    converter = any(fnmatch.fnmatch(path, p) for p in HEAVY_INSIDE_FUNCTIONS)
    if not converter:
      yield f'{top} is not a run-time dependency'
    elif not lazy:
      yield f'{top} must be imported inside the function that needs it'
  elif top in ('tests', 'configs') and top != room:
    yield f'{room} may not import {top}: it is never packaged'
  elif top in TOP_FOLDERS:
    other = room_of(target)
    if other is None:
      yield f'{target} stands in no room'
    elif other not in ROOMS[room] | EVERYONE | {room, 'root'}:
      yield f'{room} may not import {other} ({target})'
    if top == 'kernels' and len(target.split('.')) > 2:
      folder, module = target.split('.')[1:3]
      if module != 'op' and not path.startswith(f'kernels/{folder}/'):
        yield f'outside kernels/{folder} only its op.py may be imported'
  elif top not in sys.stdlib_module_names:
    allowed = THIRD_PARTY.get(room)
    if allowed is not None and top not in allowed:
      yield f'{room} may not import {top}'


def check_tree(root: pathlib.Path) -> list[str]:
  """All violations of the rules below a root folder, one line each."""
  problems = []
  paths = python_files(root, *TOP_FOLDERS)
  modules = {module_name(path) for path in paths}
  # Module-level arrows between files, for the search for circles.
  arrows = collections.defaultdict(set)
  for path in paths:
    source = (root / path).read_text(encoding='utf-8')
    lines = source.count('\n')
    if lines > MAX_LINES:
      problems.append(f'{path}:{lines}: over {MAX_LINES} lines: two rooms')
    name = module_name(path)
    room = room_of(name)
    if room is None:
      problems.append(f'{path}:1: stands in no room')
      continue
    for item in imports_of(source, path):
      for target in _targets(item, modules):
        for text in _check_import(path, room, target, item.lazy):
          problems.append(f'{path}:{item.line}: {text}')
        if target in modules and not item.lazy:
          arrows[name].add(target)
  circle = find_circle(arrows)
  if circle:
    problems.append(f'circle: {" -> ".join(circle)}')
  return problems


def find_circle(arrows) -> list[str] | None:
  """The first circle of a graph {node: nodes}, as a path; None without one."""
  done = set()

  def walk(node, trail):
    if node in trail:
      return trail[trail.index(node) :] + [node]
    if node in done:
      return None
    for other in sorted(arrows.get(node, ())):
      if circle := walk(other, trail + [node]):
        return circle
    done.add(node)
    return None

  for node in sorted(arrows):
    if circle := walk(node, []):
      return circle
  return None
