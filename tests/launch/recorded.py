r"""`launch.train`, writing down every rollout that it draws.

  RECORD=FOLDER python -m tests.launch.recorded FLAGS OF LAUNCH.TRAIN

FOLDER/INDEX.npz has the tokens and lengths of the problems from global index
INDEX on, as this process drew them.
"""

import os
import pathlib
import runpy

import numpy as np

from metastone_jax.training.loop import collect

if __name__ == '__main__':
  draw_in_waves = collect.draw_in_waves

  def recorded(
    setup, sampler, params, prompt_PS, length_P, draw_P, candidate_N
  ):
    drawn = draw_in_waves(
      setup, sampler, params, prompt_PS, length_P, draw_P, candidate_N
    )
    folder = pathlib.Path(os.environ['RECORD'])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
      folder / f'{draw_P[0]}.npz',
      draw_P=draw_P,
      prompt_PS=prompt_PS,
      token_PNR=drawn.token_PNR,
      length_PN=drawn.length_PN,
      score_PN=drawn.score_PN,
    )
    return drawn

  collect.draw_in_waves = recorded
  runpy.run_module('launch.train', run_name='__main__', alter_sys=True)
