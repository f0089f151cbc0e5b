"""From files to batches: catalogs, checks, folds, transforms. Knows nothing of networks."""
