r"""`launch.train`, writing down every rollout that it draws.

  RECORD=FOLDER python -m tests.launch.recorded FLAGS OF LAUNCH.TRAIN

FOLDER/INDEX.npz has the tokens and lengths of the problems from global index
INDEX on, as this process drew them.
"""

import os
import pathlib
import runpy

import numpy as np

from metastone_jax.training.loop import collect, draws

if __name__ == '__main__':
  collected = collect.collect

  def recorded(setup, sampler, params, phase, problem_batch, first, watch):
    """Keeps what the sampler gives this one rollout."""

    class Recorded(draws.Sampler):
      def rollout(self, params, requests, each):
        drawn = super().rollout(params, requests, each)
        folder = pathlib.Path(os.environ['RECORD'])
        folder.mkdir(parents=True, exist_ok=True)
        draw_P = np.array([request.draw for request in requests], np.int32)
        np.savez(
          folder / f'{draw_P[0]}.npz',
          draw_P=draw_P,
          prompt_PS=problem_batch[1],
          token_PNR=drawn.token_PNR,
          length_PN=drawn.length_PN,
          score_PN=drawn.score_PN,
        )
        return drawn

    sampler = Recorded(sampler.setup, sampler.config, sampler.shape)
    return collected(setup, sampler, params, phase, problem_batch, first, watch)

  collect.collect = recorded
  runpy.run_module('launch.train', run_name='__main__', alter_sys=True)
