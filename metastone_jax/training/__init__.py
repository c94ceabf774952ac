"""Train state, optimiser, the pure update step, and the loop on top."""
