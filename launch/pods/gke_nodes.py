"""Where a pod of GKE goes, in the words of its manifest."""

from launch.pods import accelerators


def placement(
  accelerator: accelerators.Accelerator, spot: bool
) -> tuple[dict[str, str], list[dict[str, str]], dict[str, str]]:
  """(nodeSelector, tolerations, resources of a container).

  Args:
    accelerator: a slice, or GPUs.
    spot: only nodes of spot node pools.
  """
  if accelerator.is_tpu:
    resource = 'google.com/tpu'
    nodes = {
      'cloud.google.com/gke-tpu-accelerator': accelerator.gke,
      'cloud.google.com/gke-tpu-topology': accelerator.topology,
    }
  else:
    resource = 'nvidia.com/gpu'
    nodes = {'cloud.google.com/gke-accelerator': accelerator.gke}
  tolerations = [{'key': resource, 'operator': 'Exists'}]
  if spot:
    nodes |= spot_nodes()
    tolerations += spot_tolerations()
  return nodes, tolerations, {resource: str(accelerator.chips_per_host)}


def spot_nodes() -> dict[str, str]:
  """The selector of spot node pools."""
  return {'cloud.google.com/gke-spot': 'true'}


def spot_tolerations() -> list[dict[str, str]]:
  """What they want to see."""
  return [{'key': 'cloud.google.com/gke-spot', 'operator': 'Exists'}]
