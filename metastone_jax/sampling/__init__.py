"""Decoding: draw candidates, score them as they are written, pick the best."""

from metastone_jax.sampling.best_of_k import BestOfK as BestOfK
from metastone_jax.sampling.best_of_k import best_of_k as best_of_k
from metastone_jax.sampling.best_of_k import select_best as select_best
from metastone_jax.sampling.config import EFFORTS as EFFORTS
from metastone_jax.sampling.config import SamplingConfig as SamplingConfig
from metastone_jax.sampling.rollout import Rollout as Rollout
from metastone_jax.sampling.rollout import decode_params as decode_params
from metastone_jax.sampling.rollout import sample as sample
