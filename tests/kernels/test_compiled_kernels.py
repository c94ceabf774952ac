"""Every kernel, forward and backward, through the compilers of its machines.

At the widths of the three recipes, on one device and inside shard_map on 2 x 2:
a kernel that takes more vector or shared memory than a core has does not
compile. The cases are those of `python -m tests.benchmarks.kernels`.
"""

import pytest

from tests.compile_check import compilers

# At least four devices each.
TARGETS = ['v5e-4', 'v5p-8', 'v6e-4', 'tpu7x-8', 'h100-8']
# Programs of each recipe (shapes x directions), and GB of temporaries that they
# may have: nothing the size of what the kernel is there to avoid. A slice's
# log-prob has the gathered head and its gradient.
OPERATORS = {
  'decode_attention': (6, 0.05),
  'scoring_head': (4, 0.5),
  'token_log_prob': (4, 2.5),
}


@pytest.mark.parametrize('target', TARGETS)
def test_every_kernel_compiles(repo_root, target):
  form = 'pallas_gpu' if target.startswith('h100') else 'pallas_tpu'
  done = compilers.run(
    repo_root,
    'tests.benchmarks.kernels',
    f'--target={target}',
    '--forms',
    form,
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  rows = [
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in done.stdout.splitlines()
    if line.startswith('| ') and f'| {form} |' in line
  ]
  for model in ('1p5b', '7b', '32b'):
    for operator, (count, limit) in OPERATORS.items():
      mine = [
        row for row in rows if row[0] == operator and row[1].startswith(model)
      ]
      assert len(mine) == count, done.stdout
      for row in mine:
        temporaries, memory, least = (float(cell) for cell in row[4:7])
        assert temporaries < limit, row
        assert 0 < least and memory > 0.9 * least, row
