"""Mesh, logical axis rules -> shardings, jobs of several processes.

Knows arrays, not models.
"""

from metastone_jax.parallel.hosts import Hosts as Hosts
from metastone_jax.parallel.mesh import MESH_AXES as MESH_AXES
from metastone_jax.parallel.mesh import make_mesh as make_mesh
from metastone_jax.parallel.rules import DEFAULT_RULES as DEFAULT_RULES
from metastone_jax.parallel.rules import Sharder as Sharder
