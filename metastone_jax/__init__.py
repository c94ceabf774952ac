"""metastone_jax: reflective generative models (MetaStone-S1) in JAX."""

__version__ = '0.1.0'
