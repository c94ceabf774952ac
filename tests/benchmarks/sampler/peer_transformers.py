"""transformers on a job of `peers`: generate, then score in a second pass.

Two forms:

- `released`: the steps of the released pipeline (SPEC 6). One problem at a
  time, two samples a call of `generate`; then every text goes one at a time
  through a second copy of the model, with all hidden states and all logits,
  and the score head reads `hidden_states[-2]` at the marks. Left out, in its
  favour: HTTP, text (ids are passed on as they are), and top-p with a
  repetition penalty in the sampler. Its policy server runs vLLM on a GPU; on a
  CPU transformers' generate stands for it.
- `batched`: the same at its best batching. As many candidates as the others
  write at a time in one call of `generate`, then one pass over them, through
  the same copy, without logits.

Each form runs on one thread or on all cores, whichever a probe finds faster:
threads of torch wait for each other busily, which other jobs turn into tenfold
times. Greedy rows are repeated by hand, because generate refuses to.
"""

import importlib.metadata
import json
import os
import sys
import time

import torch
import transformers


def marks(row: torch.Tensor, job: dict) -> torch.Tensor:
  """Feature positions of the counted marks of one text, as served (SPEC 2)."""
  mark = torch.isin(row, torch.tensor(job['step_ids']))
  after = torch.zeros_like(mark)
  after[1:] = mark[:-1] | (row[:-1] == job['think'])
  mark = (mark & ~after).roll(-1)
  mark[-1] = False

  def only(token: int, default: int) -> int:
    places = (row == token).nonzero()[:, 0]
    return int(places[0]) if len(places) == 1 else default

  first, last = only(job['think'], 0), only(job['unthink'], len(row))
  place = torch.arange(len(row))
  return mark & (place > first) & (place < last)


class Pipeline:
  """Policy and scorer of a job."""

  def __init__(self, job: dict):
    self.job = job

    def load():
      return transformers.AutoModelForCausalLM.from_pretrained(
        job['folder'], dtype=torch.float32
      ).eval()

    self.policy, self.second = load(), load()
    D = job['width']
    self.head = torch.nn.Sequential(
      torch.nn.Linear(D, 2 * D),
      torch.nn.ReLU(),
      torch.nn.Dropout(0.5),
      torch.nn.Linear(2 * D, 1),
    ).eval()
    path = os.path.join(job['folder'], 'score_module.pt')
    self.head.load_state_dict(torch.load(path))

  def fastest_threads(self, form: str) -> int:
    """1 or all cores, by a few tokens of each."""
    size = self.job['slots'] if form == 'batched' else 2
    seconds = {}
    for threads in {1, os.cpu_count()}:
      torch.set_num_threads(threads)
      for _ in range(3):  # the first does not count
        started = time.perf_counter()
        self.generate(self.job['prompts'][:1], size, most=12)
        seconds[threads] = time.perf_counter() - started
    return min(seconds, key=seconds.get)

  def generate(
    self, prompts: list[list[int]], times: int, most: int = 0
  ) -> list[list[int]]:
    """Responses to left-padded prompts, `times` each, neighbours."""
    job, longest = self.job, max(map(len, prompts))
    ids = torch.full((len(prompts), longest), job['pad'])
    for row, prompt in zip(ids, prompts, strict=True):
      row[longest - len(prompt) :] = torch.tensor(prompt)
    greedy = job['temperature'] == 0
    if greedy:
      ids, times = ids.repeat_interleave(times, 0), 1
    sampling = {} if greedy else {'temperature': job['temperature'], 'top_k': 0}
    out = self.policy.generate(
      ids,
      attention_mask=(ids != job['pad']).long(),
      do_sample=not greedy,
      num_return_sequences=times,
      max_new_tokens=most or job['longest'],
      eos_token_id=list(job['stop_ids']),
      pad_token_id=job['pad'],
      **sampling,
    )
    stops = set(job['stop_ids'])
    responses = []
    for row in out[:, longest:].tolist():
      end = next((i + 1 for i, x in enumerate(row) if x in stops), len(row))
      responses.append(row[:end])
    return responses

  def trace_score(self, feature: torch.Tensor, row: torch.Tensor) -> float:
    """Geometric mean of the step scores of one text."""
    z = self.head(feature[marks(row, self.job)])[:, 0]
    if not len(z):
      return 0.0
    return float(torch.sigmoid(z).clamp(min=1e-10).log().mean().exp())

  def released(self):
    """(tokens, scores), problem by problem."""
    tokens, scores = [], []
    for prompt in self.job['prompts']:
      drawn: list[list[int]] = []
      while len(drawn) < self.job['candidates']:
        drawn += self.generate([prompt], 2)
      del drawn[self.job['candidates'] :]
      tokens.append(drawn)
      scores.append([])
      for response in drawn:
        row = torch.tensor(prompt + response)
        out = self.second(row[None], output_hidden_states=True)
        feature = out.hidden_states[-2][0]
        scores[-1].append(self.trace_score(feature, row))
    return tokens, scores

  def batched(self):
    """(tokens, scores), problem by problem."""
    job, k = self.job, self.job['candidates']
    size = max(1, job['slots'] // k)
    tokens, scores = [], []
    for first in range(0, len(job['prompts']), size):
      prompts = job['prompts'][first : first + size]
      drawn = self.generate(prompts, k)
      texts = [
        torch.tensor(prompts[i // k] + response)
        for i, response in enumerate(drawn)
      ]
      ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
      # Causal, padded on the right: no mask is needed at the real positions.
      out = self.policy.model(ids, output_hidden_states=True, use_cache=False)
      features = out.hidden_states[-2]
      found = [
        self.trace_score(feature[: len(row)], row)
        for feature, row in zip(features, texts, strict=True)
      ]
      tokens += [drawn[i : i + k] for i in range(0, len(drawn), k)]
      scores += [found[i : i + k] for i in range(0, len(found), k)]
    return tokens, scores


def main() -> None:
  """See `peers`."""
  # Whatever else prints does not disturb the answers.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  transformers.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  with open(sys.argv[1]) as file:
    pipeline = Pipeline(json.load(file))
  versions = {
    name: importlib.metadata.version(name) for name in ('transformers', 'torch')
  }
  with torch.inference_mode():
    threads = {
      form: pipeline.fastest_threads(form) for form in ('released', 'batched')
    }
  versions |= {f'threads of {form}': n for form, n in threads.items()}
  print(json.dumps(versions), file=answers, flush=True)
  for line in sys.stdin:
    form, seed = line.split()
    torch.manual_seed(int(seed))
    torch.set_num_threads(threads[form])
    started = time.perf_counter()
    with torch.inference_mode():
      tokens, scores = getattr(pipeline, form)()
    seconds = time.perf_counter() - started
    answer = {'seconds': seconds, 'tokens': tokens, 'scores': scores}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  main()
