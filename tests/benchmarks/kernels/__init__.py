"""Each operator of kernels/ in each of its forms, timed or compiled."""
