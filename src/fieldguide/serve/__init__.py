"""A model behind HTTP: a page to try it and an interface for programs."""
