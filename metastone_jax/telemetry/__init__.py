"""What a run says about itself: metrics, progress, timers, stop signals.

Imports nothing else of the library (but `errors`); anyone may import it.
"""

from metastone_jax.telemetry.files import write_json_atomic, write_text_atomic
from metastone_jax.telemetry.metrics import MetricWriter, read_metrics
from metastone_jax.telemetry.progress import Progress
from metastone_jax.telemetry.signals import StopRequest
from metastone_jax.telemetry.throughput import ByteProgress
from metastone_jax.telemetry.timers import Stopwatch

__all__ = [
  'ByteProgress',
  'MetricWriter',
  'Progress',
  'StopRequest',
  'Stopwatch',
  'read_metrics',
  'write_json_atomic',
  'write_text_atomic',
]
