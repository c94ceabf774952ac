"""What thinking and judging cost, counted: parameters, FLOPs, memory.

Contract: pure functions of numbers (or numpy arrays of them), nothing measured.
Two measures of compute: C = parameters x thinking tokens (SPEC 5; also given as
2 P T FLOPs), and FLOPs as they are done, 2 a multiply-add: products of the
weights, attention, scoring. Biases, norms and element-wise work are left out.

Letters: P problems, N samples of each, D width, E hidden units of the score
head, L blocks, f blocks below the score head.
"""

import dataclasses
from typing import Any

import numpy as np

from metastone_jax.errors import UserError

# A number, or an array of them: of one problem, or of P.
Numbers = Any


@dataclasses.dataclass(frozen=True)
class Shape:
  """The numbers of a model that costs depend on.

  Attributes:
    parameters: of the backbone; a tied embedding counts once.
    block_weights: that a token is multiplied with in all blocks.
    vocab_size: V.
    width: D.
    layers: L.
    judged_layers: f, the blocks below the score head.
    query_width: query heads x width of a head.
    cache_width: key/value heads x width of a head.
    score_units: E.
  """

  parameters: int
  block_weights: int
  vocab_size: int
  width: int
  layers: int
  judged_layers: int
  query_width: int
  cache_width: int
  score_units: int

  @property
  def head_parameters(self) -> int:
    """Of the score head: Linear(D, E), Linear(E, 1)."""
    return (self.width + 1) * self.score_units + self.score_units + 1

  @property
  def prm_parameters(self) -> int:
    """Of a separate reward model: the same backbone, whole, and a head."""
    return self.parameters + self.head_parameters


@dataclasses.dataclass(frozen=True)
class Compute:
  """What an answer from k samples costs; numbers, or one a problem.

  Attributes:
    parameters_x_tokens: C, P x thinking tokens.
    products: FLOPs of the weights' products.
    attention: FLOPs of attention.
    scoring: FLOPs of whatever judges.
  """

  parameters_x_tokens: Numbers
  products: Numbers
  attention: Numbers
  scoring: Numbers

  @property
  def two_p_t(self) -> Numbers:
    """2 x parameters x thinking tokens, the usual estimate of FLOPs."""
    return 2 * self.parameters_x_tokens

  @property
  def flops(self) -> Numbers:
    """All that is done, scoring included."""
    return self.products + self.attention + self.scoring


@dataclasses.dataclass(frozen=True)
class Judge:
  """What judging costs on top of drawing.

  Attributes:
    parameters: held in memory beyond the policy's.
    flops: a sample (the shape of the numbers given).
  """

  parameters: int
  flops: Numbers


def parameters_x_tokens(parameters: int, tokens: Numbers) -> Numbers:
  """C of the paper's law: parameters x thinking tokens (SPEC 5)."""
  return parameters * np.asarray(tokens, float)


def two_p_t(parameters: int, tokens: Numbers) -> Numbers:
  """FLOPs as usually estimated: 2 a parameter and token."""
  return 2 * parameters_x_tokens(parameters, tokens)


def attention_flops(
  shape: Shape,
  tokens: Numbers,
  *,
  before: Numbers = 0,
  layers: int | None = None,
) -> Numbers:
  """FLOPs of causal attention of `tokens` tokens behind `before` others.

  The i-th reads before + i keys and as many values: q.k and p.v, 2 FLOPs each
  a number.

  Args:
    shape: of the model.
    tokens: that attend.
    before: that they also attend to.
    layers: blocks; None = all.
  """
  tokens, before = np.asarray(tokens, float), np.asarray(before, float)
  reads = tokens * before + tokens * (tokens + 1) / 2
  layers = shape.layers if layers is None else layers
  return 4.0 * layers * shape.query_width * reads


def write_products(shape: Shape, tokens: Numbers) -> Numbers:
  """FLOPs of the weights' products where tokens are drawn one by one."""
  head = shape.width * shape.vocab_size
  return 2.0 * np.asarray(tokens, float) * (shape.block_weights + head)


def read_products(
  shape: Shape, tokens: Numbers, *, layers: int | None = None
) -> Numbers:
  """The same where they are read: the policy head draws none of them."""
  share = 1.0 if layers is None else layers / shape.layers
  return 2.0 * np.asarray(tokens, float) * shape.block_weights * share


def score_flops(shape: Shape, marks: Numbers) -> Numbers:
  """FLOPs of the score head at so many marks: 4 D (D + 1) each at E = 2 D."""
  each = 2.0 * shape.score_units * (shape.width + 1)
  return each * np.asarray(marks, float)


def of_head(shape: Shape, marks: Numbers) -> Judge:
  """The score head in the loop: it reads what the policy has computed.

  Args:
    shape: of the policy.
    marks: scored, of each sample.
  """
  return Judge(shape.head_parameters, score_flops(shape, marks))


def of_prm(
  shape: Shape, *, prompt: Numbers, tokens: Numbers, marks: Numbers
) -> Judge:
  """A separate reward model of the same backbone, which reads every trace.

  It holds a whole backbone and a head. It does the least it can: one pass over
  prompt and trace, through the blocks below its head, no policy head.

  Args:
    shape: of the policy, and of the reward model.
    prompt: tokens; read again with each sample.
    tokens: of each sample.
    marks: scored, of each sample.
  """
  read = np.asarray(prompt, float) + np.asarray(tokens, float)
  layers = shape.judged_layers
  return Judge(
    shape.prm_parameters,
    read_products(shape, read, layers=layers)
    + attention_flops(shape, read, layers=layers)
    + score_flops(shape, marks),
  )


def of_samples(
  shape: Shape,
  *,
  prompt: Numbers,
  tokens_N: Numbers,
  thinking_N: Numbers,
  k: int | None = None,
  judge: Judge | None = None,
) -> Compute:
  """What k of N samples cost: the mean over all k-subsets.

  The prompt is read once for all k.

  Args:
    shape: of the policy.
    prompt: tokens, () or (P,).
    tokens_N: written, (N,) or (P, N).
    thinking_N: of these, the tokens of the thinking.
    k: samples an answer; None = all N.
    judge: of the samples, `of_head` or `of_prm`; None = nothing is scored.

  Returns:
    Costs, () or (P,).

  Raises:
    UserError: k is not in 1..N.
  """
  prompt, tokens_N = np.asarray(prompt, float), np.asarray(tokens_N, float)
  N = tokens_N.shape[-1]
  k = N if k is None else k
  if not 1 <= k <= N:
    raise UserError(f'k={k} must lie in [1, {N}], the samples a problem')

  def of_k(values_N):
    return k * np.mean(np.broadcast_to(values_N, tokens_N.shape), axis=-1)

  written = attention_flops(shape, tokens_N, before=prompt[..., None])
  return Compute(
    parameters_x_tokens=of_k(parameters_x_tokens(shape.parameters, thinking_N)),
    products=read_products(shape, prompt)
    + of_k(write_products(shape, tokens_N)),
    attention=attention_flops(shape, prompt) + of_k(written),
    scoring=of_k(0.0 if judge is None else judge.flops),
  )


def cache_bytes(shape: Shape, tokens: Numbers, *, number_bytes: int = 2):
  """Keys and values of so many tokens in all layers."""
  each = 2 * number_bytes * shape.layers * shape.cache_width
  return each * np.asarray(tokens, float)


def bytes_held(
  shape: Shape,
  *,
  prompt: Numbers,
  tokens: Numbers,
  candidates: Numbers,
  judge: Judge | None = None,
  number_bytes: int = 2,
) -> Numbers:
  """Memory while candidates are written: weights, caches, and the judge's.

  Args:
    shape: of the policy.
    prompt: tokens; their cache is shared by the candidates.
    tokens: of a candidate, at most.
    candidates: written at a time.
    judge: what scores them.
    number_bytes: of a weight and of a number in the cache.
  """
  extra = 0 if judge is None else judge.parameters
  weights = number_bytes * (shape.parameters + extra)
  cached = np.asarray(prompt, float) + np.asarray(candidates) * tokens
  return weights + cache_bytes(shape, cached, number_bytes=number_bytes)
