"""Answers from photos: classifiers, tables. Knows nothing of training or run folders."""
