"""The machine that computes: devices, processes, ranks, Ray. Knows nothing of what is computed."""
