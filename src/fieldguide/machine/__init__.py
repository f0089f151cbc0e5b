"""Where it is computed: devices, processes, ranks, Ray. Knows nothing of what is computed."""
