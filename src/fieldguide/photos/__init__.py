"""The way from files to batches: catalogs, checks, folds, transforms. Knows nothing of networks."""
