"""How launch.sample draws and chooses: its flags, and what they stand for."""

import dataclasses
from collections.abc import Hashable, Iterator, Sequence

from absl import flags

from metastone_jax.data import ChatFormat, Tokenizer
from metastone_jax.errors import UserError
from metastone_jax.sampling import EFFORTS, SamplingConfig
from metastone_jax.sampling.engine import (
  Answer,
  Candidate,
  Election,
  Engine,
  EngineConfig,
  Rejection,
  Request,
  SearchConfig,
  StopStrings,
  best_of,
  search,
  vote,
)
from metastone_jax.tasks import boxed_answer

_STRATEGY = flags.DEFINE_enum(
  'strategy',
  'best',
  ['best', 'majority', 'weighted', 'beam', 'dvts'],
  "'best': the candidate with the best score answers; 'majority', 'weighted': "
  'a vote over the boxed answers, plain or by score, which stops when it is '
  "decided; 'beam', 'dvts': k beams are judged after every step, and the best "
  'go on, of all or of each tree.',
)
_WIDTH = flags.DEFINE_integer(
  'width', 2, 'Children of a beam that goes on; divides k.'
)
_STEP_TOKENS = flags.DEFINE_integer(
  'step_tokens', 256, 'A longer step of a search is judged unfinished.'
)
_EFFORT = flags.DEFINE_enum(
  'effort',
  'low',
  list(EFFORTS),
  'Candidates, and the share of --max_tokens that they may think: '
  + ', '.join(f'{n} {e.k} and {e.thinking:.0%}' for n, e in EFFORTS.items()),
)
_K = flags.DEFINE_integer(
  'k', None, 'Candidates, instead of those of --effort.'
)
_BUDGET = flags.DEFINE_integer(
  'thinking_budget',
  None,
  'Thinking tokens after which </think> is forced, instead of the share of '
  '--effort; 0 = no limit but --max_tokens.',
)
_FORM = flags.DEFINE_enum(
  'form',
  'complete',
  ['complete', 'trace'],
  "'complete': k whole responses; 'trace': k thinking traces, one answer.",
)
_MAX_TOKENS = flags.DEFINE_integer(
  'max_tokens', 512, 'Of a response; of a thinking trace with --form=trace.'
)
_ANSWER_TOKENS = flags.DEFINE_integer(
  'answer_tokens', None, 'Of the answer of --form=trace; default: max_tokens.'
)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.6, '0 = greedy.')
_TOP_P = flags.DEFINE_float('top_p', 0.95, '1 = off.')
_TOP_K = flags.DEFINE_integer('top_k', 0, '0 = off.')
_MIN_P = flags.DEFINE_float('min_p', 0.0, '0 = off.')
_REPETITION_PENALTY = flags.DEFINE_float(
  'repetition_penalty', 1.0, '1 = off; the released server: 1.05.'
)
_STOP = flags.DEFINE_multi_string(
  'stop', [], 'Text that ends a response; repeat the flag for more.'
)
_STOP_TOKEN = flags.DEFINE_multi_string(
  'stop_token', [], 'Token that ends a response, beside those of the model.'
)
_BAD_TOKEN = flags.DEFINE_multi_string(
  'bad_token', [], 'Token that is never drawn; repeat the flag for more.'
)
_MARKS = flags.DEFINE_multi_string(
  'step_mark',
  None,
  'Text that ends a step, one token; repeat the flag for more. Default: those '
  'of the run, else the first of .\\n\\n, \\n\\n, .\\n, \\n that is a token.',
)
_PRUNE_AT = flags.DEFINE_integer(
  'prune_at',
  None,
  'Give up candidates: those whose thinking has ended with a worse score than '
  "another one's do not answer; and of those that still think, the worse ones "
  'after so many tokens, twice as many, and so on (0 = none of these). '
  'Default: every candidate is written to its end.',
)
_PRUNE_KEEP = flags.DEFINE_float(
  'prune_keep', 0.5, 'Share of them that goes on each time.'
)
_CONTEXT = flags.DEFINE_integer(
  'context',
  None,
  'Tokens of prompt and response together; default: what the model was '
  'published for.',
)
_SLOTS = flags.DEFINE_integer(
  'slots', 32, 'Candidates that are written at a time.'
)
_TURNS = flags.DEFINE_integer(
  'turns', 32, 'Tokens that they write between two looks at them.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')

# Everything that an answer depends on. How many are drawn at a time is of
# weight only where candidates are given up on the way, see `Drawing.settings`.
_ANSWER_FLAGS = (
  _STRATEGY,
  _WIDTH,
  _STEP_TOKENS,
  _FORM,
  _MAX_TOKENS,
  _ANSWER_TOKENS,
  _TEMPERATURE,
  _TOP_P,
  _TOP_K,
  _MIN_P,
  _REPETITION_PENALTY,
  _STOP,
  _STOP_TOKEN,
  _BAD_TOKEN,
  _MARKS,
  _PRUNE_AT,
  _PRUNE_KEEP,
  _SEED,
)


@dataclasses.dataclass(frozen=True)
class Drawing:
  """The flags, for one model.

  Attributes:
    k: candidates a question.
    sampling: of all draws.
    max_tokens: of a response, or of a trace.
    answer_tokens: of the answer after a trace; 0 in form 'complete'.
    context: tokens of prompt and response together; None = no limit.
    search: over steps; None = k independent candidates.
    stop: texts that end a response.
    tokenizer: of the model.
    chat: its form of prompts and responses.
  """

  k: int
  sampling: SamplingConfig
  max_tokens: int
  answer_tokens: int
  context: int | None
  search: SearchConfig | None
  stop: StopStrings
  tokenizer: Tokenizer
  chat: ChatFormat

  @classmethod
  def from_flags(
    cls,
    tokenizer: Tokenizer,
    chat: ChatFormat,
    *,
    step_marks: Sequence[str] | None,
    context: int | None,
    where: str,
  ) -> 'Drawing':
    """Checks the flags against the model.

    Args:
      tokenizer: of the model.
      chat: its form of prompts and responses.
      step_marks: of the run that made it, if any.
      context: that it was published for, if anybody says.
      where: its name, for messages.

    Raises:
      UserError: a flag that does not fit.
    """
    effort = EFFORTS[_EFFORT.value]
    form = _FORM.value
    if form == 'trace' and not tokenizer.has_think_tags:
      raise UserError(
        f'--form=trace needs think tags, which {where} has not; use '
        '--form=complete'
      )
    if form == 'trace' and _STRATEGY.value != 'best':
      raise UserError(
        f'--strategy={_STRATEGY.value} is about whole responses; use '
        '--form=complete'
      )
    if _STRATEGY.value in ('beam', 'dvts') and _STOP.value:
      raise UserError(
        f'--strategy={_STRATEGY.value} cannot end at a text; leave --stop out '
        'or give --stop_token'
      )
    if _STRATEGY.value != 'best' and _PRUNE_AT.value is not None:
      raise UserError(
        f'--strategy={_STRATEGY.value} has its own way to give candidates up; '
        'leave --prune_at out'
      )
    if _MAX_TOKENS.value < 1:
      raise UserError(f'--max_tokens={_MAX_TOKENS.value} must be at least 1')
    answer = 0
    if form == 'trace':
      answer = _ANSWER_TOKENS.value
      answer = _MAX_TOKENS.value if answer is None else answer
    ids = tokenizer.sampling_ids()
    stop_ids = [
      tokenizer.id_of(x, fix='give --stop_token a token of this model')
      for x in _STOP_TOKEN.value
    ]
    ids['more_eos_ids'] = (*ids['more_eos_ids'], *stop_ids)
    k = effort.k if _K.value is None else _K.value
    searches = None
    if _STRATEGY.value in ('beam', 'dvts'):
      searches = SearchConfig(
        _STRATEGY.value, k, _WIDTH.value, _STEP_TOKENS.value
      )
    budget = _BUDGET.value
    if budget is None and tokenizer.has_think_tags:
      budget = max(1, int(effort.thinking * _MAX_TOKENS.value))
    marks = _MARKS.value or step_marks or tokenizer.find_step_marks()[:1]
    drawing = cls(
      k,
      SamplingConfig(
        max_response_length=_MAX_TOKENS.value + answer,
        step_ids=tokenizer.step_ids(marks),
        **ids,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
        min_p=_MIN_P.value,
        repetition_penalty=_REPETITION_PENALTY.value,
        bad_ids=tuple(
          tokenizer.id_of(x, fix='give --bad_token a token of this model')
          for x in _BAD_TOKEN.value
        ),
        # No room for a forced tag where there is one token only.
        thinking_budget=(budget or None) if _MAX_TOKENS.value > 1 else None,
      ),
      _MAX_TOKENS.value,
      answer,
      _CONTEXT.value or context,
      searches,
      StopStrings(tuple(_STOP.value), tokenizer.decode),
      tokenizer,
      chat,
    )
    # Bad numbers are refused now, not after the weights were read.
    drawing._rejection()
    drawing.engine_config(1, 1)
    if not 0 <= _SEED.value < 2**31:
      raise UserError(f'--seed={_SEED.value} must be in 0..2^31-1')
    return drawing

  @property
  def settings(self) -> dict:
    """What the answers depend on, as JSON has it."""
    found = {flag.name: flag.value for flag in _ANSWER_FLAGS}
    budget = self.sampling.thinking_budget
    if _STRATEGY.value in ('majority', 'weighted') or self.prunes:
      found |= {flag.name: flag.value for flag in (_SLOTS, _TURNS)}
    return found | {'k': self.k, 'thinking_budget': budget}

  @property
  def prunes(self) -> bool:
    """Whether candidates are given up by their score so far."""
    return _PRUNE_AT.value is not None

  @property
  def seed(self) -> int:
    """Of the draws."""
    return _SEED.value

  def engine_config(self, questions: int, shards: int) -> EngineConfig:
    """The engine for so many questions.

    Args:
      questions: to be answered.
      shards: devices that share the slots, equally many each.
    """
    slots = min(_SLOTS.value, max(1, self.k) * questions)
    turns = _TURNS.value
    if _PRUNE_AT.value:
      turns = min(turns, _PRUNE_AT.value)
    return EngineConfig(
      num_slots=-(-slots // shards) * shards,
      turns=turns,
      context=self.context,
    )

  def request(self, question: str, draw: int) -> Request:
    """A question as the engine takes it.

    Raises:
      UserError: it cannot be served.
    """
    request = Request(
      tuple(self.tokenizer.encode(self.chat.render(question))),
      draw,
      tuple(range(self.k)),
      max_tokens=self.max_tokens,
    )
    whole = dataclasses.replace(
      request, max_tokens=self.sampling.max_response_length
    )
    whole.check(self.sampling, self.context)
    return request

  def answers(
    self, engine: Engine, requests: Sequence[Request]
  ) -> Iterator[Answer]:
    """By the strategy, in the order in which they are ready."""
    if self.search is not None:
      yield from search(engine, requests, self.search)
      return
    if _STRATEGY.value != 'best':
      for election in vote(
        engine, requests, self._answer_of, kind=_STRATEGY.value, stop=self.stop
      ):
        yield _elected(election)
      return
    prune = None
    if self.prunes:
      prune = self._rejection()
    yield from best_of(
      engine,
      requests,
      form=_FORM.value,
      answer_length=self.answer_tokens,
      prune=prune,
      stop=self.stop,
    )

  def _rejection(self) -> Rejection:
    return Rejection(self.sampling, _PRUNE_AT.value or 0, _PRUNE_KEEP.value)

  def _answer_of(self, candidate: Candidate) -> Hashable | None:
    """The last box of what follows the thinking; None if it was cut off."""
    if not candidate.finished:
      return None
    text = self.tokenizer.decode(candidate.token_R.tolist())
    box = boxed_answer(self.chat.canonical(text))
    return None if box is None else ''.join(box.split())


def _elected(election: Election) -> Answer:
  winner = election.candidates[election.best]
  return Answer(
    election.request,
    election.candidates,
    election.best,
    winner.token_R,
    winner.finished,
    election.tokens,
    election.flops,
  )
