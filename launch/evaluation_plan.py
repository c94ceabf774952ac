"""How many answers launch.evaluate draws, and what it makes of them."""

import dataclasses

from absl import flags

from metastone_jax.errors import UserError
from metastone_jax.evaluation import DEFAULT_KS
from metastone_jax.sampling import EFFORTS, SamplingConfig

_EFFORT = flags.DEFINE_enum(
  'effort',
  None,
  list(EFFORTS),
  'Candidates k and the share of a response that they may think: '
  + ', '.join(f'{n} {e.k} and {e.thinking:.0%}' for n, e in EFFORTS.items())
  + '. Default: --samples and --k, with no thinking budget.',
)
_REPEATS = flags.DEFINE_integer(
  'repeats',
  None,
  'Independent answers a problem, with --effort or --mode=trace; default 4.',
  lower_bound=1,
)
_SAMPLES = flags.DEFINE_integer(
  'samples',
  None,
  'Responses a problem; default 64, or k times --repeats with --effort.',
  lower_bound=1,
)
_KS = flags.DEFINE_list(
  'k', None, 'Candidates k to report; default 1,2,8,32 and that of --effort.'
)
_MODE = flags.DEFINE_enum(
  'mode',
  'complete',
  ['complete', 'trace'],
  "'complete': whole responses, each scored by its thinking; 'trace' (the "
  'paper): k thinking traces, the answer written once from the best.',
)
_RELEASED = flags.DEFINE_bool(
  'released_scores',
  False,
  'Score and select as the released code does: a think tag counts only where '
  'it occurs once, a response without step marks scores 0, the highest score '
  'wins even if its response was cut off.',
)

_SAMPLES_DEFAULT, _REPEATS_DEFAULT = 64, 4


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is drawn for each problem.

  Attributes:
    ks: subset sizes to report; in the form of traces, traces an answer.
    samples: responses a problem, or answers for each k of traces.
    traces: the form 'trace'.
    thinking: share of a response that it may think; None = no budget.
    released: score and select as the released code does.
  """

  ks: tuple[int, ...]
  samples: int
  traces: bool
  thinking: float | None
  released: bool

  @classmethod
  def from_flags(cls) -> 'Plan':
    """The flags, checked against each other.

    Raises:
      UserError: they contradict each other, or a k that is none.
    """
    traces, effort = _MODE.value == 'trace', None
    if _EFFORT.value is not None:
      effort = EFFORTS[_EFFORT.value]
      for flag in (_SAMPLES, _KS):
        if flag.value is not None:
          raise UserError(
            f'--effort={_EFFORT.value} and --{flag.name} both say how many '
            'candidates there are; give one of them (--repeats goes with '
            '--effort)'
          )
    if traces and _SAMPLES.value is not None:
      raise UserError(
        '--samples is about whole responses; with --mode=trace give --k and '
        '--repeats'
      )
    if _REPEATS.value is not None and effort is None and not traces:
      raise UserError(
        '--repeats goes with --effort or --mode=trace; without them --samples '
        'says how many responses a problem gets'
      )
    repeats = _REPEATS.value or _REPEATS_DEFAULT
    if effort is not None:
      ks = (effort.k,)
      if not traces:
        ks = (*(k for k in DEFAULT_KS if k < effort.k), effort.k)
      samples = repeats if traces else effort.k * repeats
    else:
      samples = repeats if traces else _SAMPLES.value or _SAMPLES_DEFAULT
      ks = _whole_numbers(_KS.value or [str(k) for k in DEFAULT_KS])
      if not traces:
        if ks[0] > samples:
          raise UserError(
            f'--k={ks[0]} needs at least {ks[0]} samples a problem; raise '
            '--samples'
          )
        ks = tuple(k for k in ks if k <= samples)
    return cls(
      ks,
      samples,
      traces,
      effort and effort.thinking,
      _RELEASED.value,
    )

  def sampling(
    self, sampling: SamplingConfig, has_think_tags: bool
  ) -> SamplingConfig:
    """The draws of a model under this plan.

    Args:
      sampling: its own.
      has_think_tags: whether its thinking ends with a tag that a budget could
        force.
    """
    if self.released:
      sampling = dataclasses.replace(
        sampling, released_selection=True, score_side='serve'
      )
    length = sampling.max_response_length
    if self.thinking is not None and has_think_tags and length > 1:
      budget = max(1, int(self.thinking * length))
      sampling = dataclasses.replace(sampling, thinking_budget=budget)
    return sampling

  def text(self) -> str:
    """In a few words, for file names and titles."""
    kind = '-released' if self.released else ''
    return kind + (f'-effort_{_EFFORT.value}' if _EFFORT.value else '')


def _whole_numbers(texts: list[str]) -> tuple[int, ...]:
  try:
    ks = tuple(sorted({int(k) for k in texts}))
  except ValueError:
    raise UserError(f'--k={texts}: give whole numbers') from None
  if not ks or ks[0] < 1:
    raise UserError(f'--k={texts}: k must be at least 1')
  return ks
