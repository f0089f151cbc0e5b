"""The forms of tools and collections of this field, each as a plain table."""
