"""The hardware of a run: devices, processes, ranks, Ray. Knows nothing of what is computed."""
