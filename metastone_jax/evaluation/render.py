"""Sections, tables and pictures as Markdown and as one HTML page.

Contract: no numbers are computed here. Both writers show the same content in
the same order: headline, pictures, sections with tables, how it was made. All
text is escaped in the HTML, which needs no other file and no network.
"""

import base64
import dataclasses
import html

from etils import epath

from metastone_jax.evaluation import tables


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG that exists, with its heading and caption."""

  title: str
  caption: str
  path: epath.Path


@dataclasses.dataclass(frozen=True)
class Section:
  """A heading with a paragraph and tables of (header, rows) text."""

  title: str
  text: str
  tables: list[tuple[list[str], list[list[str]]]]


def markdown(title, sentence, sections, pictures, facts, config_text) -> str:
  """The report as Markdown; pictures are referenced as plots/NAME.png."""
  parts = [f'# {title}', f'**{sentence}**']
  parts += [
    f'## {p.title}\n\n![{p.title}](plots/{p.path.name})\n\n{p.caption}'
    for p in pictures
  ]
  for section in sections:
    parts += [f'## {section.title}', section.text]
    parts += [tables.markdown_table(*table) for table in section.tables]
  parts.append('## How it was made')
  parts.append(
    '\n'.join(
      f'- {k}: `{v}`' if k == 'command' else f'- {k}: {v}' for k, v in facts
    )
  )
  if config_text:
    # Four ticks: a config may hold a fence of three.
    parts.append(f'````\n{config_text.rstrip()}\n````')
  return '\n\n'.join(parts) + '\n'


def page(title, sentence, sections, pictures, facts, config_text) -> str:
  """The report as one HTML page; pictures are embedded."""
  escape = html.escape
  body = [
    f'<h1>{escape(title)}</h1>',
    f'<p class="headline">{escape(sentence)}</p>',
  ]
  for p in pictures:
    data = base64.b64encode(p.path.read_bytes()).decode('ascii')
    body.append(
      f'<h2>{escape(p.title)}</h2><figure><img alt="{escape(p.title)}" '
      f'src="data:image/png;base64,{data}">'
      f'<figcaption>{escape(p.caption)}</figcaption></figure>'
    )
  for section in sections:
    body.append(f'<h2>{escape(section.title)}</h2>')
    body.append(f'<p>{escape(section.text)}</p>')
    body += [_html_table(*table) for table in section.tables]
  body.append('<h2>How it was made</h2>')
  body.append(_html_table(['what', 'value'], facts, 'facts'))
  if config_text:
    body.append(
      '<details><summary>config</summary><pre>'
      f'{escape(config_text)}</pre></details>'
    )
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{escape(title)}</title><style>{_CSS}</style></head>\n<body>\n'
    + '\n'.join(body)
    + '\n</body></html>\n'
  )


def _html_table(header, rows, kind: str = '') -> str:
  def line(cells, tag):
    inner = ''.join(f'<{tag}>{html.escape(str(c))}</{tag}>' for c in cells)
    return f'<tr>{inner}</tr>'

  return (
    f'<div class="scroll"><table class="{kind}"><thead>'
    + line(header, 'th')
    + '</thead><tbody>'
    + ''.join(line(row, 'td') for row in rows)
    + '</tbody></table></div>'
  )


_CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #ffffff;
  --line: #d8dbe0; --soft: #f3f5f8; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e6ea;
  --paper: #16181c; --line: #3a3f47; --soft: #20242a; --accent: #56b4e9; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.headline { font-size: 1.15rem; border-left: 4px solid var(--accent);
  padding: .4rem 1rem; background: var(--soft); }
figure { margin: 0; } img { max-width: 100%; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px; padding: 8px;
  box-sizing: border-box; }
figcaption { font-size: .9rem; opacity: .8; }
.scroll { overflow-x: auto; } table { border-collapse: collapse;
  margin: .8rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem;
  text-align: right; } th { background: var(--soft); }
th:first-child, td:first-child, .facts th, .facts td { text-align: left; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; }
"""
