"""The claims as text: verdicts, arms, costs, rules, in Markdown.

Contract: no number is computed here but sums and means of what is given. What
has not been run is named, never left out.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from metastone_jax.evaluation import tables
from metastone_jax.scaling import claims, claims_list
from metastone_jax.scaling.claims import Estimate, Finding
from metastone_jax.scaling.claims_list import Side


@dataclasses.dataclass(frozen=True, eq=False)
class SetReport:
  """All that the page says of one set.

  Attributes:
    name: of `claims_list.SETS`.
    arms: that are done.
    findings: of `claims.findings`.
    planned: arm -> seeds that were meant to be done.
    seconds: what was done -> seconds of work, the sum over points.
    k: samples an answer.
    ks: of the tables against k.
    pictures: (caption, file name) of what is beside the page.
    command: that runs this set.
  """

  name: str
  arms: claims.Arms
  findings: Sequence[Finding]
  planned: Mapping[str, Sequence[int]]
  seconds: Mapping[str, float]
  k: int
  ks: Sequence[int]
  pictures: Sequence[tuple[str, str]]
  command: str

  def arm_names(self) -> list[str]:
    """Arms that are done, in the order of `claims_list.ARMS`."""
    done = {arm for arm, _ in self.arms}
    known = [name for name in claims_list.ARMS if name in done]
    return known + sorted(done - set(known))

  def about(self, arm: str, key: str) -> float | None:
    """Mean over seeds of a number in `about.json`; None where it has none."""
    found = [
      getattr(self.arms[arm, seed].about, key)
      for seed in claims.seeds_of(self.arms, arm)
    ]
    found = [value for value in found if value is not None]
    return sum(found) / len(found) if found else None

  def has_head(self, arm: str) -> bool:
    """Whether it gives scores to steps."""
    seed = min(claims.seeds_of(self.arms, arm))
    return self.arms[arm, seed].judged.has_head

  def options(self, arm: str) -> dict[str, Any]:
    """How it was fitted, of its first seed."""
    seed = min(claims.seeds_of(self.arms, arm))
    return self.arms[arm, seed].about.options


def page(
  sets: Sequence[SetReport],
  *,
  command: str,
  facts: Sequence[str],
  arithmetic: Sequence[str],
  notes: str = '',
) -> str:
  """The whole page.

  Args:
    sets: of `claims_list.SETS`, also those of which nothing is done.
    command: that makes the page.
    facts: lines on machine and versions.
    arithmetic: paragraphs on the parameters saved at real sizes.
    notes: Markdown that is appended as it is.
  """
  parts = [
    '# Claims of the paper, tested',
    'The claims of the paper and its released code, and questions that they '
    'leave open, at a size that a CPU can run. All arms of a seed start from '
    'one warmed checkpoint and judge the same held-out samples (`later` and '
    '`transfer`: those of a later policy; `own` and `own-lm-only`: '
    'their own).',
    f'Made by `{command}`; every number is computed anew from the samples that '
    'the workdir keeps.',
    '\n'.join(f'- {fact}' for fact in facts),
  ]
  parts += [headline(one) for one in sets if one.arms]
  parts.append(_METHOD)
  for one in sets:
    parts.append(f'## {capital(claims_list.SETS[one.name])}')
    parts.append(_set_section(one) if one.arms else not_run(one))
  parts.append('## Parameters saved, at real sizes')
  parts += arithmetic
  if notes:
    parts.append(notes.strip())
  return '\n\n'.join(parts) + '\n'


_METHOD = f"""## How to read it

- A contrast is a paired difference on the same problems and seeds: accuracy of
  the answer from k samples, averaged over all k-subsets of the samples (in
  percentage points), or AUC within a problem (x 100).
- Intervals ({100 * claims.LEVEL:g} %) account for other problems and, from two
  seeds on, for other seeds. With one seed they are about that seed alone.
- **Supported**: the interval of a 'better' claim lies above 0; that of a 'no
  worse' claim lies above -{100 * claims_list.TOLERATED:g} points. **Not
  supported**: the interval of a 'better' claim ends below
  {100 * claims_list.MATTERS:g} point, so that a gain that would matter is ruled
  out; that of a 'no worse' claim ends below -{100 * claims_list.TOLERATED:g}.
  Else **unclear**.
- Verdicts are by the trace score of the paper, the geometric mean of all step
  scores. **By the last step alone**: the same contrast where every fitted side
  is read at its last step only. Where the two differ, the arms differ in what
  they say of early steps, not in what they know at the end.
- Many claims at once: p is one-sided against the claim's border, after Holm's
  correction over the claims of its set. A supported claim with p above 0.025
  may be luck (†).
- No worse than nothing is little: ‡ marks a supported claim of 'no worse' whose
  second side is not shown to choose better than chance (one sample, or an AUC
  of 50)."""


def headline(one: SetReport) -> str:
  """One sentence: how many claims have which verdict."""
  counts = {
    verdict: sum(f.verdict == verdict for f in one.findings)
    for verdict in (claims.SUPPORTED, claims.NOT_SUPPORTED, claims.UNCLEAR)
  }
  rest = len(one.findings) - sum(counts.values())
  hollow = sum(f.hollow for f in one.findings)
  notes = {claims.SUPPORTED: f' ({hollow} of them ‡)' if hollow else ''}
  words = ', '.join(
    f'{count} {verdict}{notes.get(verdict, "")}'
    for verdict, count in counts.items()
  )
  more = f', {rest} not measured' if rest else ''
  return (
    f'**{capital(claims_list.SETS[one.name])}**: of {len(one.findings)} '
    f'claims {words}{more}.'
  )


def not_run(one: SetReport) -> str:
  """The plain sentence of a set of which no arm is done."""
  return f'This set has not been run. The command: `{one.command}`.'


def _set_section(one: SetReport) -> str:
  P, N = next(iter(one.arms.values())).judged.shape
  parts = [
    f'`{one.command}`: {P} held-out problems, {N} samples of each; k = '
    f'{one.k}. {_seeds_sentence(one)} {_time_sentence(one)}',
    '### Verdicts',
    table(*verdict_table(one.findings), words=3),
    *(f'![{caption}]({name})' for caption, name in one.pictures),
    '### Arms',
    table(*arm_table(one), words=2),
    'KL: how far the backbone of the policy moved on its own held-out '
    'responses, nats a token (an estimate: noise may take it below 0); LM: its '
    'language-model loss on them before and after. A separate reward model '
    'leaves the policy as it is. An arm whose backbone moved judges samples '
    'that the policy drew before it did: the further that is, the less they '
    'are those that it would draw and judge in use. Score loss: at the end of '
    'the fit, on training samples; losses of different kinds do not compare. '
    'All arms have the same learning rates, chosen for none of them.',
    '### What judging costs',
    table(*cost_table(one)),
    'FLOPs are counted, a problem with all its samples. Measured times of '
    'scoring: `python -m tests.benchmarks.sampler --case=scoring`.',
    '### Rules against k',
    table(*rule_table(one)),
  ]
  return '\n\n'.join(parts)


def _seeds_sentence(one: SetReport) -> str:
  planned = {(arm, s) for arm, seeds in one.planned.items() for s in seeds}
  missing = sorted(planned - set(one.arms))
  seeds = len({seed for _, seed in one.arms})
  done = len(one.arms)
  total = len({seed for _, seed in planned | set(one.arms)})
  text = (
    f'Arms done: {done} of {len(planned | set(one.arms))}; seeds: {seeds} of '
    f'{total}.'
  )
  if missing:
    names: dict[str, list[str]] = {}
    for arm, seed in missing:
      names.setdefault(arm, []).append(str(seed))
    listed = '; '.join(f'{a} (seed {", ".join(s)})' for a, s in names.items())
    text += f' Still missing: {listed}.'
  return text


def _time_sentence(one: SetReport) -> str:
  if not one.seconds:
    return ''
  total = sum(one.seconds.values())
  listed = ', '.join(
    f'{name} {duration(seconds)}' for name, seconds in one.seconds.items()
  )
  return f'Time of all workers together: {duration(total)} ({listed}).'


def table(
  header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1
) -> str:
  """A Markdown table; the first `words` columns left-aligned."""
  lines = [
    header,
    ['---'] * words + ['---:'] * (len(header) - words),
    *rows,
  ]
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def verdict_table(findings: Sequence[Finding]) -> tables.Table:
  """A row a claim."""
  header = [
    'claim',
    'who says so',
    'contrast',
    'a, b',
    'a - b, points (interval)',
    'by the last step alone',
    'seeds',
    'verdict',
    'p (Holm)',
  ]
  rows = []
  for f in findings:
    auc = f.claim.metric == claims_list.AUC
    contrast = f'{f.a} {_sign(f)} {f.b}' + ', AUC' * auc
    row = [f.claim.text, f.claim.source, contrast]
    if f.difference is None:
      rows.append([*row, '', '', '', '0', 'not run', ''])
      continue
    if f.verdict == claims.UNDEFINED:
      undefined = 'undefined: no problem has right and wrong samples'
      rows.append([*row, '', '', '', str(len(f.seeds)), undefined, ''])
      continue
    sides = f'{100 * f.mean_a:.1f}, {100 * f.mean_b:.1f}'
    rows.append(
      [
        *row,
        sides,
        points(f.difference),
        '' if f.last is None or math.isnan(f.last.mean) else points(f.last),
        str(len(f.seeds)),
        verdict_words(f),
        p_value(f.holm),
      ]
    )
  return header, rows


def _sign(found: Finding) -> str:
  return '>' if found.claim.kind == claims_list.BETTER else '≥'


def p_value(p: float) -> str:
  """As `evaluation.tables`, down to what such tails can be trusted for."""
  return '< 1e-6' if p < 1e-6 else tables.p_value(p)


def verdict_words(found: Finding) -> str:
  """`supported`, `supported † ‡`, `not supported (the reverse holds)`."""
  text = f'**{found.verdict}**'
  if found.verdict == claims.SUPPORTED and found.holm > 0.025:
    text += ' †'
  if found.hollow:
    text += ' ‡'
  if found.same:
    text += ' (no problem differs)'
  elif (
    found.verdict == claims.NOT_SUPPORTED
    and found.claim.kind == claims_list.BETTER
    and found.difference.high < 0
  ):
    text += ' (the reverse holds)'
  return text


def arm_table(one: SetReport) -> tables.Table:
  """A row an arm: how well it chooses, what it did to the policy."""
  header = [
    'arm',
    'what',
    'seeds',
    f'best-of-{one.k}, %',
    'by the last step alone, %',
    'AUC within',
    'KL',
    'LM before, after',
    'updates',
    'score loss',
    'training, s',
  ]
  rows = []
  for arm in one.arm_names():
    options = one.options(arm)
    best = claims.measure(one.arms, Side(arm), one.k)
    auc = claims.measure(one.arms, Side(arm), one.k, claims_list.AUC)
    last = ''
    if one.has_head(arm):
      side = Side(arm, aggregator='last')
      last = interval(claims.measure(one.arms, side, one.k), 1, 100)
    losses = [one.about(arm, f'lm_loss_{when}') for when in ('before', 'after')]
    rows.append(
      [
        arm,
        claims_list.ARMS.get(arm, ''),
        str(best.seeds),
        interval(best, 1, 100),
        last,
        interval(auc, 3),
        _number(one.about(arm, 'kl_policy'), '.2g'),
        '' if None in losses else ', '.join(f'{x:.3f}' for x in losses),
        str(options.get('updates') or ''),
        _number(options.get('score_loss'), '.3f'),
        _number(one.about(arm, 'train_seconds'), ',.0f'),
      ]
    )
  return header, rows


def cost_table(one: SetReport) -> tables.Table:
  """A row an arm: parameters, FLOPs."""
  header = [
    'arm',
    'parameters beyond the policy',
    'parameters trained',
    'FLOPs of drawing',
    'FLOPs of judging',
    'judging / drawing, %',
  ]
  rows = []
  for arm in one.arm_names():
    drawing = one.about(arm, 'flops_policy_per_problem')
    judging = one.about(arm, 'flops_judge_per_problem')
    share = None
    if drawing and judging is not None:
      share = 100 * judging / drawing
    rows.append(
      [
        arm,
        _number(one.about(arm, 'parameters_extra'), ',.0f'),
        _number(one.about(arm, 'parameters_trained'), ',.0f'),
        _number(drawing, '.3g'),
        _number(judging, '.3g'),
        _number(share, '.3g'),
      ]
    )
  return header, rows


def rule_table(one: SetReport) -> tables.Table:
  """Accuracy of the main arm's rules against k."""
  main = claims_list.MAIN[one.name]
  names = one.arm_names()
  arm = main if main in names else names[0]
  sides = {
    f'best-of-k ({arm}), %': Side(arm),
    'weighted vote': Side(arm, 'vote'),
    'majority': Side(arm, 'majority'),
    'pass@k': Side(arm, 'oracle'),
  }
  first = one.arms[arm, claims.seeds_of(one.arms, arm)[0]]
  if not first.judged.has_head:
    del sides['weighted vote']
  return ['k', *sides], [
    [
      str(k),
      *(
        interval(claims.measure(one.arms, side, k), 1, 100)
        for side in sides.values()
      ),
    ]
    for k in one.ks
  ]


def interval(found: Estimate, digits: int, scale: float = 1.0) -> str:
  """`53.1 (51.0 to 55.2)`, cut to what a share can be."""
  if math.isnan(found.mean):
    return 'undefined'
  low, high = max(0.0, found.low), min(1.0, found.high)
  return tables.number(dict(mean=found.mean, low=low, high=high), digits, scale)


def points(found: Estimate) -> str:
  """`+1.2 (-0.3 to 2.7)`."""
  return tables.points(dict(mean=found.mean, low=found.low, high=found.high))


def duration(seconds: float) -> str:
  """`41 s`, `12 min`, `2.4 h`."""
  if seconds < 100:
    return f'{seconds:.0f} s'
  if seconds < 100 * 60:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'


def capital(text: str) -> str:
  """With a capital first letter."""
  return text[0].upper() + text[1:]


def _number(value: Any, form: str) -> str:
  return '' if value is None else format(value, form)
