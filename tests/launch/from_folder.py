"""The small recipe on a pretrained folder: a warm-up and five joint steps."""

from tests.launch import small


def get_config():
  c = small.get_config()
  c.name = 'from_folder'
  c.model = dict(source='', remat='full', vocab_multiple=8)
  c.mesh = dict(fsdp=-1, tensor=1)
  c.data.tokenizer = 'source'
  c.phase_order = ('warmup', 'joint')
  joint = c.phases.joint
  joint.prompts_per_step = 8
  joint.sequences_per_microbatch = 32
  joint.score_loss = 'bce'
  c.evaluation.problems = 8
  return c
