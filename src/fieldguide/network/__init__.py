"""A backbone and a head: built, loaded, its batch norm. Knows nothing of folds or training."""
