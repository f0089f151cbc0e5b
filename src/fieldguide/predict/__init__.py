"""From photos to answers: classifiers, tables. Knows nothing of training or run folders."""
