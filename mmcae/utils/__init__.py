"""Small helpers that belong to no part of the algorithm: configs, errors, the environment's report."""
