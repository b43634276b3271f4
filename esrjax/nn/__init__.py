"""Building blocks of networks: ops, layers, kernels, reparameterization, cost, state dicts."""
