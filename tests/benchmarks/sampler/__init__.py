"""What the sampler is worth on a CPU: `python -m tests.benchmarks.sampler`."""
