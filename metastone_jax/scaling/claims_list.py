"""The claims that are tested, as data: who against whom, by what, how decided.

A claim compares two sides on the same held-out problems. A SIDE is an arm (a
fitted head, `configs/sweeps/claims.py`) with a rule that makes one answer of k
samples and, for rules that read a score, how step scores become a trace score.
MAIN is the arm that the rest is compared with: in the tiny set the recipe's own
(a small new backbone has to make the feature, so the head's whole gradient
reaches it), in the pretrained set a head on the frozen backbone, which can have
as many updates as a head needs (a gradient of 1e-4 is next to none, claims
`train-backbone` and `scale-frozen`, but costs a pass of the backbone each).

Sources: numbers of the paper are those of SPEC 8 (AIME24).
"""

import dataclasses

TINY, SMOLLM2 = 'tiny', 'smollm2'
SETS = {
  TINY: 'the tiny tasks, from scratch',
  SMOLLM2: 'SmolLM2-135M-Instruct, a pretrained backbone',
}
MAIN = {TINY: 'full', SMOLLM2: 'frozen'}

BETTER, NO_WORSE = 'better', 'no worse'
ACCURACY, AUC = 'accuracy', 'AUC'
# Of 'better': a gain below it would not matter. Of 'no worse': a loss below it
# would not.
MATTERS = 0.01
TOLERATED = 0.02

RULES = ('best', 'vote', 'majority', 'single')

# What each arm is, in words; also the order of the tables.
ARMS = {
  'full': 'BCE, whole gradient into the backbone',
  'scale-1e-4': 'BCE, gradient into the backbone times 1e-4',
  'lm-only': 'BCE; of the two losses only the LM loss moves the backbone',
  'frozen': 'BCE, backbone frozen, eight times the updates',
  'frozen-short': 'BCE, backbone frozen, as many updates as the others',
  'full-spr': 'SPR (the first quarter BCE), whole gradient',
  'full-soft': 'SPR with a soft filter (steps weighted by what the head gives '
  'y), whole gradient',
  'frozen-spr': 'SPR (the first quarter BCE), backbone frozen, as `frozen`',
  'frozen-soft': 'SPR with a soft filter, backbone frozen, as `frozen`',
  'layer-1': 'feature behind block 1 of 4',
  'layer-2': 'feature behind block 2 of 4',
  'position-at': 'feature at the mark, not before it',
  'width-half': 'D / 2 hidden units instead of 2 D',
  'width-4x': '8 D hidden units instead of 2 D',
  'outcome': 'trained and read at the last thinking position alone',
  'prm': 'a separate reward model: a copy of all blocks below its head, fitted',
  'self-certainty': 'no head: how sure the policy is of each token',
  'log-prob': 'no head: mean log-probability of the tokens',
  'written': 'no head: whether the last step ends with the token " 0"',
  'later': 'a new head, fitted at a later checkpoint, judging its samples',
  'transfer': 'the head of `full`, judging those samples as it is',
  'own': '`full`, judging what its own moved backbone writes, as in use',
  'own-lm-only': '`lm-only`, likewise',
}


@dataclasses.dataclass(frozen=True)
class Side:
  """One side of a contrast.

  Attributes:
    arm: a key of `ARMS`, or 'main'.
    rule: of `RULES`: best-of-k by the score, score-weighted vote, majority
      vote, or one sample (the last two read no score).
    aggregator: of step scores; '' = the arm's own.
  """

  arm: str = 'main'
  rule: str = 'best'
  aggregator: str = ''

  def of_set(self, name: str) -> 'Side':
    """With the arm that 'main' stands for in this set."""
    if self.arm != 'main':
      return self
    return dataclasses.replace(self, arm=MAIN[name])

  def __str__(self) -> str:
    """`full, geometric`, `majority vote`, `full, one sample`."""
    if self.rule == 'majority':
      return 'majority vote'
    rule = {'vote': 'vote', 'single': 'one sample'}.get(self.rule, '')
    words = [self.arm, self.aggregator, rule]
    return ', '.join(word for word in words if word)


@dataclasses.dataclass(frozen=True)
class Claim:
  """One sentence that samples can support or not.

  Attributes:
    id: short, unique.
    text: the claim, in words.
    source: who says so, with its number; 'not in the paper' for a question
      that it leaves open.
    a: the side that is claimed to be better, or no worse.
    b: the other.
    kind: BETTER or NO_WORSE.
    metric: ACCURACY of the answer from k samples, or AUC within a problem.
    margin: see MATTERS and TOLERATED; a share.
    sets: of `SETS`, where it is tested.
  """

  id: str
  text: str
  source: str
  a: Side
  b: Side
  kind: str = BETTER
  metric: str = ACCURACY
  margin: float = MATTERS
  sets: tuple[str, ...] = (TINY, SMOLLM2)

  def sides(self, name: str) -> tuple[Side, Side]:
    """(a, b) of a set."""
    return self.a.of_set(name), self.b.of_set(name)


def _no_worse(id, text, source, a, b, **options) -> Claim:
  return Claim(id, text, source, a, b, NO_WORSE, margin=TOLERATED, **options)


_MAIN = Side()
_GEOMETRIC = Side(aggregator='geometric')
_OPEN = 'not in the paper'
_ONLY_TINY = dict(sets=(TINY,))

CLAIMS: tuple[Claim, ...] = (
  Claim(
    'arithmetic',
    'Geometric mean of step scores beats the arithmetic mean',
    'paper: 53.1 against 52.9',
    _GEOMETRIC,
    Side(aggregator='arithmetic'),
  ),
  Claim(
    'product',
    'Geometric mean beats the product',
    'paper: 53.1 against 44.2',
    _GEOMETRIC,
    Side(aggregator='product'),
  ),
  Claim(
    'last-step',
    'Geometric mean beats the last step alone',
    'paper: 53.1 against 48.5',
    _GEOMETRIC,
    Side(aggregator='last'),
  ),
  Claim(
    'min',
    'Geometric mean beats the lowest step',
    _OPEN,
    _GEOMETRIC,
    Side(aggregator='min'),
  ),
  Claim(
    'spr',
    'The SPR loss beats plain BCE',
    'paper: 70.2 against 69.1 (7B, k = 32)',
    Side('full-spr'),
    Side('full'),
    **_ONLY_TINY,
  ),
  Claim(
    'spr-frozen',
    'The SPR loss beats plain BCE on a frozen backbone',
    'paper: 70.2 against 69.1 (its gradient is nearly off)',
    Side('frozen-spr'),
    Side('frozen'),
  ),
  Claim(
    'spr-auc',
    'The SPR loss tells right from wrong better than BCE',
    _OPEN,
    Side('frozen-spr'),
    Side('frozen'),
    metric=AUC,
  ),
  Claim(
    'soft',
    'A soft filter beats plain BCE',
    _OPEN,
    Side('full-soft'),
    Side('full'),
    **_ONLY_TINY,
  ),
  Claim(
    'soft-frozen',
    'A soft filter beats plain BCE on a frozen backbone',
    _OPEN,
    Side('frozen-soft'),
    Side('frozen'),
    **_ONLY_TINY,
  ),
  _no_worse(
    'prm',
    'The small head loses nothing against a separate reward model',
    'paper: 66.3 against 60.1 of a 72B reward model',
    Side('frozen'),
    Side('prm'),
  ),
  _no_worse(
    'prm-scale',
    'Nor does a head with a gradient of 1e-4 into the backbone',
    'the same; released code: 1e-4',
    Side('scale-1e-4'),
    Side('prm'),
  ),
  _no_worse(
    'prm-full',
    'A reward model that shares the backbone loses nothing against that',
    _OPEN,
    Side('full'),
    Side('prm'),
  ),
  _no_worse(
    'prm-auc',
    'The small head tells right from wrong no less well than a reward model',
    _OPEN,
    Side('frozen'),
    Side('prm'),
    metric=AUC,
  ),
  _no_worse(
    'prm-own',
    'Nor in use, where the policy that its gradient moved writes the samples',
    _OPEN,
    Side('own'),
    Side('prm'),
    **_ONLY_TINY,
  ),
  _no_worse(
    'own-single',
    'Fitting the head leaves single answers of the policy as right as before',
    _OPEN,
    Side('own', rule='single'),
    Side('full', rule='single'),
    **_ONLY_TINY,
  ),
  _no_worse(
    'own-gradient',
    'The gradient of the score loss costs single answers nothing',
    _OPEN,
    Side('own', rule='single'),
    Side('own-lm-only', rule='single'),
    **_ONLY_TINY,
  ),
  _no_worse(
    'scale',
    'A gradient of 1e-4 into the backbone is enough',
    'released code: 1e-4',
    Side('scale-1e-4'),
    Side('full'),
  ),
  Claim(
    'train-backbone',
    'A gradient of 1e-4 into the backbone beats none',
    'released code: 1e-4, not 0',
    Side('scale-1e-4'),
    Side('lm-only'),
  ),
  Claim(
    'scale-frozen',
    'A gradient of 1e-4 beats a frozen backbone, after as many updates',
    'released code: 1e-4, not 0',
    Side('scale-1e-4'),
    Side('frozen-short'),
  ),
  Claim(
    'layer-1',
    'The feature before the last block beats the one behind block 1',
    'paper: takes the former, shows no other',
    Side('full'),
    Side('layer-1'),
    **_ONLY_TINY,
  ),
  Claim(
    'layer-2',
    'The feature before the last block beats the one behind block 2',
    'paper: takes the former, shows no other',
    Side('full'),
    Side('layer-2'),
    **_ONLY_TINY,
  ),
  _no_worse(
    'position',
    'The position before the mark loses nothing against the mark itself',
    'paper: takes the former, shows no other',
    Side('full'),
    Side('position-at'),
    **_ONLY_TINY,
  ),
  _no_worse(
    'width-4x',
    'Four times the hidden units would gain nothing',
    'paper: 2 D, shows no other',
    Side('full'),
    Side('width-4x'),
    **_ONLY_TINY,
  ),
  _no_worse(
    'width-half',
    'A quarter of the hidden units is enough',
    _OPEN,
    Side('width-half'),
    Side('full'),
    **_ONLY_TINY,
  ),
  Claim(
    'outcome',
    'Step scores beat one score of the whole trace (both at the mark)',
    _OPEN,
    Side('position-at'),
    Side('outcome'),
    **_ONLY_TINY,
  ),
  Claim(
    'outcome-end',
    'Step scores beat one score behind the whole response',
    _OPEN,
    Side('scale-1e-4'),
    Side('outcome'),
    sets=(SMOLLM2,),
  ),
  Claim(
    'written',
    'The head knows more than the last number written',
    _OPEN,
    _MAIN,
    Side('written'),
    **_ONLY_TINY,
  ),
  Claim(
    'majority',
    'Best-of-k by the head beats the majority vote',
    _OPEN,
    _MAIN,
    Side(rule='majority'),
  ),
  Claim(
    'vote',
    'Best-of-k beats the vote weighted by the same scores',
    _OPEN,
    _MAIN,
    Side(rule='vote'),
  ),
  Claim(
    'vote-majority',
    'The weighted vote beats the majority vote',
    _OPEN,
    Side(rule='vote'),
    Side(rule='majority'),
  ),
  Claim(
    'self-certainty',
    'The head beats self-certainty of the policy',
    _OPEN,
    _MAIN,
    Side('self-certainty'),
  ),
  Claim(
    'log-prob',
    "The head beats the policy's mean log-probability",
    _OPEN,
    _MAIN,
    Side('log-prob'),
  ),
  _no_worse(
    'transfer',
    'A head stays as good when the policy moves on',
    _OPEN,
    Side('transfer'),
    Side('later'),
    **_ONLY_TINY,
  ),
  Claim(
    'transfer-majority',
    'A head of an earlier checkpoint still beats the majority vote',
    _OPEN,
    Side('transfer'),
    Side('transfer', rule='majority'),
    **_ONLY_TINY,
  ),
)


def of_set(name: str) -> tuple[Claim, ...]:
  """The claims that are tested in a set."""
  return tuple(claim for claim in CLAIMS if name in claim.sets)


def arms_of(name: str) -> set[str]:
  """The arms that they need."""
  return {side.arm for c in of_set(name) for side in c.sides(name)}
