"""Which weights live: one method a file, pure functions on arrays."""
