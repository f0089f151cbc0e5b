"""Questions to a run: outside scores, labels, landscapes. Knows nothing of their pages."""
