"""A random Qwen2 folder through every command: in, trained, out, into torch."""

import dataclasses
import importlib.util
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from metastone_jax.checkpoints import Pretrained
from metastone_jax.checkpoints.huggingface.safetensors_files import (
  SafetensorsFolder,
)
from metastone_jax.data import Tokenizer
from metastone_jax.errors import UserError
from metastone_jax.parallel import Sharder
from metastone_jax.training import loop
from metastone_jax.training import step as step_lib
from metastone_jax.training.loop import collect
from tests.checkpoints.huggingface import parts
from tests.launch import jobs

CONFIG = 'tests/launch/from_folder.py'


def command(module, *flags, devices=8):
  """The plain command on fake devices, to its end."""
  return subprocess.run(
    [sys.executable, '-m', module, *map(str, flags)],
    cwd=jobs.ROOT,
    env=jobs.environment(devices),
    capture_output=True,
    text=True,
    timeout=280,
  )


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """The source, the ingested folder, the run and its export."""
  root = tmp_path_factory.mktemp('models')
  source = root / 'source'
  source.mkdir()
  tokenizer = Tokenizer.tiny()
  parts.save_folder(
    source,
    'qwen2',
    dtype='bfloat16',
    vocab_size=tokenizer.vocab_size + 3,  # as published: rows without a token
    eos_token_id=tokenizer.eos_id,
  )
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(tokenizer.folder / name, source / name)
  done = {'source': source}
  for name, module, flags in (
    (
      'ingested',
      'launch.ingest',
      (f'--source={source}', f'--config={CONFIG}', '--out'),
    ),
    (
      'run',
      'launch.train',
      (
        f'--config={CONFIG}',
        f'--config.model.source={root / "ingested"}',
        '--workdir',
      ),
    ),
    (
      'export',
      'launch.export',
      (f'--checkpoint={root / "run"}', '--dtype=float32', '--out'),
    ),
  ):
    found = command(module, *flags, root / name)
    assert found.returncode == 0, found.stderr
    done[name] = root / name
    done[f'{name}_output'] = found.stdout + found.stderr
  return done


def test_ingested_is_the_folder(folders):
  config, params = parts.load(folders['source'], vocab_multiple=8)
  with Pretrained(folders['ingested']) as pretrained:
    # How ingest computed (remat) is no property of the weights.
    assert pretrained.config == dataclasses.replace(
      config, param_dtype='bfloat16'
    )
    assert set(pretrained.files) >= {'config.json', 'tokenizer.json'}
    again = pretrained.load(config, Sharder())
  jax.tree.map(np.testing.assert_array_equal, params, again)
  assert 'and its score head' in folders['ingested_output']
  assert 'GB/s' in folders['ingested_output']


def test_an_ingested_folder_exports_bit_equal(folders, tmp_path):
  """Folder -> checkpoint -> folder, through the commands."""
  import torch

  out = tmp_path / 'out'
  found = command(
    'launch.export', f'--checkpoint={folders["ingested"]}', f'--out={out}'
  )
  assert found.returncode == 0, found.stderr
  with SafetensorsFolder(folders['source']) as a, SafetensorsFolder(out) as b:
    assert a.tensors == b.tensors
    for name in a.tensors:
      np.testing.assert_array_equal(a.read(name), b.read(name), err_msg=name)
  old, new = (
    torch.load(path / 'score_module.pt', weights_only=True)
    for path in (folders['source'], out)
  )
  for name, value in old.items():
    torch.testing.assert_close(new[name], value, rtol=0, atol=0)


def test_folders_of_others_are_left_alone(folders, tmp_path):
  mine = tmp_path / 'mine'
  (mine / 'checkpoints').mkdir(parents=True)
  (mine / 'checkpoints' / 'model.ckpt').write_text('work')
  for module, flags, message in (
    ('launch.ingest', (f'--source={folders["source"]}',), 'exists already'),
    (
      'launch.export',
      (f'--checkpoint={folders["run"]}', '--overwrite'),
      'exists already and is no export',
    ),
  ):
    found = command(module, *flags, f'--out={mine}', devices=1)
    assert found.returncode == 2 and message in found.stderr
  assert (mine / 'checkpoints' / 'model.ckpt').read_text() == 'work'
  found = command(
    'launch.train',
    f'--config={CONFIG}',
    f'--config.model.source={folders["ingested"]}',
    f'--workdir={folders["ingested"]}',
    devices=1,
  )
  assert found.returncode == 2
  assert 'is a folder of launch.ingest, not of a run' in found.stderr
  assert not (folders['ingested'] / 'config.json').exists()


def test_training_moved_the_backbone_and_the_head(folders):
  _, before = parts.load(folders['ingested'], param_dtype='float32')
  _, after = parts.load(folders['run'])
  moved = jax.tree.map(lambda x, y: float(abs(x - y).max()), before, after)
  assert all(value > 0 for value in jax.tree.leaves(moved)), moved


def test_torch_log_probs_of_the_rollouts_equal_the_trainers(folders):
  import json

  import torch
  import transformers

  recipe = loop.recipe_from_dict(
    json.loads((folders['run'] / 'config.json').read_text())
  )
  setup = loop.Setup.build(
    dataclasses.replace(recipe, mesh={'fsdp': -1, 'tensor': 2}), folders['run']
  )
  params = loop.load_params(setup, str(folders['run'] / 'checkpoints'), None)
  problems = setup.problems('train')
  batch = problems.batch_at(problems.start(), 8)
  from metastone_jax.telemetry import Stopwatch

  rows = collect.collect(
    setup,
    loop.Sampler.build(setup, setup.train_sampling, problems=8, samples=4),
    params,
    recipe.phases[-1],
    batch,
    0,
    Stopwatch(),
  ).rows
  found = jax.jit(
    lambda params, batch: step_lib.log_prob_pass(
      params,
      batch,
      model_config=setup.model_config,
      sharder=setup.sharder,
      num_micro_batches=1,
      with_step_logit=False,
    )
  )(params, setup.sharder.put_batch(rows))
  trainer = np.asarray(found['log_prob_BT'])
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folders['export'], dtype=torch.float32
  ).eval()
  token = torch.tensor(rows['tokens_BT'], dtype=torch.long)
  real = torch.tensor(rows['segment_BT'], dtype=torch.long)
  with torch.no_grad():
    logits = model(input_ids=token, attention_mask=real).logits
  temperature = torch.tensor(rows['temperature_B'])[:, None, None]
  log_prob = torch.log_softmax(logits / temperature, dim=-1)
  target = torch.tensor(rows['target_BT'], dtype=torch.long)[..., None]
  want = log_prob.gather(-1, target)[..., 0].numpy()
  mask = rows['policy_mask_BT'].astype(bool)
  assert mask.sum() > 100
  np.testing.assert_allclose(trainer[mask], want[mask], atol=2e-4, rtol=2e-4)
  np.testing.assert_allclose(
    rows['sampler_log_prob_BT'][mask], want[mask], atol=2e-4, rtol=2e-4
  )


def test_the_card_names_source_recipe_and_numbers(folders):
  card = (folders['export'] / 'README.md').read_text()
  assert f'Started from `{folders["ingested"]}`' in card
  assert '| signs | 2 |' in card and '"score_loss": "bce"' in card


def test_a_run_needs_its_source_no_more(folders, tmp_path):
  """Resuming, evaluating and exporting read the run's own folder."""
  run = tmp_path / 'run'
  shutil.copytree(folders['run'], run)
  config = (run / 'config.json').read_text()
  (run / 'config.json').write_text(
    config.replace(str(folders['ingested']), '/gone')
  )
  found = command(
    'launch.evaluate', f'--checkpoint={run}', '--problems=8', '--samples=2',
    '--k=2', devices=1,
  )  # fmt: skip
  assert found.returncode == 0, found.stderr


def released_score(model, head, ids, marks, think_start, think_end):
  """The released server's rule (SPEC 1, 2), in torch, on token ids."""
  import torch

  first = 0
  if ids.count(think_start) == 1:
    first = ids.index(think_start)
  last = len(ids)
  if ids.count(think_end) == 1:
    last = ids.index(think_end)
  places = [
    i
    for i in range(1, len(ids))
    if first < i < last and ids[i] in marks and ids[i - 1] not in marks
    if not (ids[i - 1] == think_start)
  ]
  if not places:
    return 0.0
  with torch.no_grad():
    out = model(torch.tensor([ids]), output_hidden_states=True)
    # The position BEFORE the mark, in the stream that enters the last block.
    feature = out.hidden_states[-2][0, [i - 1 for i in places]]
    log_p = torch.nn.functional.logsigmoid(head(feature)[:, 0])
  return float(torch.exp(log_p.mean()))


def test_evaluated_scores_follow_the_released_rule(folders):
  """`launch.evaluate` against torch on the same token ids."""
  import json

  import torch
  import transformers

  out = folders['run'] / 'released'
  found = command(
    'launch.evaluate',
    f'--checkpoint={folders["run"]}',
    '--problems=8',
    '--samples=8',
    '--k=2',
    '--mode=complete',
    '--released_scores',
    '--token_ids',
    f'--out={out}',
    devices=1,
  )
  assert found.returncode == 0, found.stderr
  (file,) = out.glob('*-token_ids.jsonl')
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folders['export'], dtype=torch.float32
  ).eval()
  head = parts.torch_score_module()
  head.load_state_dict(
    torch.load(folders['export'] / 'score_module.pt', weights_only=True)
  )
  tokenizer = Tokenizer.from_folder(folders['export'])
  scores, wanted = [], []
  for line in lines:
    prompt = tokenizer.encode(
      f'<|im_start|>user\n{line["prompt"]}<|im_end|>\n'
      '<|im_start|>assistant\n<think>\n'
    )
    output = line['output']
    for ids, score in zip(
      output['token_ids_lst'], output['score_lst'], strict=True
    ):
      scores.append(score)
      wanted.append(
        released_score(
          model,
          head,
          prompt + ids,
          set(tokenizer.step_ids()),
          tokenizer.think_start_id,
          tokenizer.think_end_id,
        )
      )
  np.testing.assert_allclose(scores, wanted, atol=1e-5)
  assert len({round(score, 4) for score in scores}) > 16  # not all alike


@pytest.mark.parametrize(
  ('module', 'flags', 'message'),
  [
    ('launch.ingest', ('--out=x',), '--source and --out are needed'),
    ('launch.ingest', ('--source=/gone', '--out=/tmp/x'), 'there is no /gone'),
    ('launch.export', ('--checkpoint=/gone', '--out=/tmp/x'), 'no /gone'),
    (
      'launch.train',
      (f'--config={CONFIG}', '--workdir=/tmp/x'),
      'needs model.source',
    ),
  ],
)
def test_bad_calls_end_with_one_line(module, flags, message):
  found = command(module, *flags, devices=1)
  assert found.returncode == 2
  assert found.stderr.strip().splitlines()[-1].startswith('error: ')
  assert message in found.stderr


@pytest.mark.parametrize('name', ['1p5b', '7b', '32b'])
def test_large_recipes_take_such_a_folder(name, folders, repo_root):
  """Their plan, on a small model; without a source they name what to give."""
  spec = importlib.util.spec_from_file_location(
    name, repo_root / 'configs' / f'{name}.py'
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  with pytest.raises(UserError, match='needs model.source, .* and data.source'):
    loop.Setup.build(loop.parse_recipe(config))
  config.model.source = str(folders['source'])
  config.data.source = 'chain_sum'
  setup = loop.Setup.build(loop.parse_recipe(config))
  assert setup.model_config.padded_vocab_size % 128 == 0
  assert setup.model_config.dtype == 'bfloat16'
  assert setup.model_config.param_dtype == 'float32'
  text = loop.describe(setup)
  assert f'recipe {name}' in text and 'SPR' in text.upper()


def test_the_config_of_this_test_is_a_recipe():
  from tests.launch import from_folder

  config: ConfigDict = from_folder.get_config()
  config.model.source = 'x'
  assert loop.parse_recipe(config).source == 'x'


def test_sample_answers_from_the_best_candidate(folders):
  import json

  found = command(
    'launch.sample',
    f'--checkpoint={folders["run"]}',
    '--question=Make 3 using 1, 2.',
    '--max_tokens=24',
    '--k=4',
    '--json',
    devices=1,
  )
  assert found.returncode == 0, found.stderr
  line = json.loads(found.stdout)
  output = line['output']
  assert len(output['solution_lst']) == len(output['score_lst']) == 4
  assert output['content'] == output['solution_lst'][line['best']]
