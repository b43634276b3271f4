"""Building blocks of networks: ops, layers, kernels, reparameterisation, cost, state dicts."""
