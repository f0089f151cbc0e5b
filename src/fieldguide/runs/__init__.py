"""The run folder: what it holds, and its scores. Knows nothing of how folds are trained."""
