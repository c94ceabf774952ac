"""The two-headed transformer: config, backbone, heads, caches."""

from metastone_jax.model.config import ModelConfig as ModelConfig
from metastone_jax.model.config import preset as preset
from metastone_jax.model.layers import LayerCache as LayerCache
from metastone_jax.model.params import abstract_params as abstract_params
from metastone_jax.model.params import init_params as init_params
from metastone_jax.model.params import param_axes as param_axes
from metastone_jax.model.params import unstack_params as unstack_params
from metastone_jax.model.prefill import Reading as Reading
from metastone_jax.model.prefill import open_reading as open_reading
from metastone_jax.model.prefill import read_piece as read_piece
from metastone_jax.model.rope import RopeScaling as RopeScaling
from metastone_jax.model.transformer import Params as Params
from metastone_jax.model.transformer import ReflectiveModel as ReflectiveModel
