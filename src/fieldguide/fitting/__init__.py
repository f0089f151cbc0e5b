"""From photos and a recipe to a run. Knows nothing of what is asked of a finished run."""
