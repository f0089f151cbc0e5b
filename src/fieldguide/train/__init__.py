"""One fold: its steps, merges and checkpoints. Knows nothing of other folds or run folders."""
