"""README.md of an export: what the model is, how it was made, its numbers."""

import json
from typing import Any

from etils import epath

from metastone_jax.model import ModelConfig
from metastone_jax.telemetry.progress import format_count

_USE = """## Use

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = '.'
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
score_head = torch.nn.Sequential(
  torch.nn.Linear({width}, {hidden}),
  torch.nn.ReLU(),
  torch.nn.Dropout({dropout}),
  torch.nn.Linear({hidden}, 1),
).eval()
score_head.load_state_dict(
  torch.load(f'{{folder}}/score_module.pt', weights_only=True)
)
# The score of a step: the residual stream at the position BEFORE the step's
# mark; hidden_states[{layer}] of a forward pass with output_hidden_states=True.
# sigmoid(score_head(...)) is the step's score, the geometric mean over the
# steps that of the trace.
```
"""


def write(
  root: epath.Path, config: ModelConfig, step: int, extra: dict[str, Any]
) -> str:
  """The text of the card.

  Args:
    root: folder of the run or of launch.ingest.
    config: shapes.
    step: of the checkpoint.
    extra: its JSON object.
  """
  # `phases` are in the recipe of a run; a folder of launch.ingest has none.
  recipe = extra.get('config') or {}
  trained = 'phases' in recipe
  base = extra.get('source') or (recipe.get('model') or {}).get('source')
  name = recipe.get('name') if trained else epath.Path(root).name
  lines = ['---', 'library_name: transformers']
  lines += ['tags:', '- reflective-generative-model', '- reasoning', '---', '']
  lines += [f'# {name}', '']
  lines += [
    'A reflective generative model: one backbone of '
    f'{format_count(config.num_backbone_parameters)} parameters that reasons, '
    f'and a score head of {format_count(config.num_score_parameters)} that '
    'judges each of its reasoning steps (MetaStone-S1, arXiv 2507.01951). Made '
    'with metastone_jax.',
    '',
  ]
  if base:
    lines += [f'Started from `{base}`.', '']
  lines += [f'Checkpoint: step {step}, phase `{extra.get("phase")}`.', '']
  lines += [
    _USE.format(
      width=config.width,
      hidden=config.score_units,
      dropout=config.score_dropout,
      layer=config.split,
    )
  ]
  summary = root / 'summary.json'
  if trained and summary.exists() and _at_end(recipe, extra):
    lines += _numbers(json.loads(summary.read_text()), extra.get('phase'))
  if trained:
    text = json.dumps(recipe, indent=2)
    lines += ['## Recipe', '', '```json', text, '```', '']
  versions = extra.get('versions') or {}
  lines += [
    'Versions: ' + ', '.join(f'{k} {v}' for k, v in versions.items()) + '.'
  ]
  return '\n'.join(lines) + '\n'


def _at_end(recipe: dict[str, Any], extra: dict[str, Any]) -> bool:
  """Whether the checkpoint is the end of its phase, where it was evaluated."""
  steps = {phase['name']: phase['steps'] for phase in recipe['phases']}
  return extra['phase_step'] == steps[extra['phase']]


def _numbers(summaries: dict[str, Any], phase: str | None) -> list[str]:
  """The evaluation after the checkpoint's phase, where there is one."""
  lines = []
  for task, stages in summaries.items():
    found = stages.get(f'after {phase}')
    if found is None:
      continue
    if not lines:
      lines += [
        '## Held-out accuracy, %',
        '',
        '| task | k | SPRM best-of-k | weighted vote | majority | oracle |',
        '| --- | --- | --- | --- | --- | --- |',
      ]
    for row in found['rows']:
      cells = [
        f'{100 * row[rule]["mean"]:.1f} ({100 * row[rule]["low"]:.1f} to '
        f'{100 * row[rule]["high"]:.1f})'
        for rule in ('best_of_k', 'weighted_vote', 'majority', 'oracle')
      ]
      lines.append(f'| {task} | {row["k"]} | ' + ' | '.join(cells) + ' |')
  return [*lines, ''] if lines else []
