"""Graph × Machine → Program."""
