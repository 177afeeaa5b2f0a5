"""What a design costs: counts of work, from plain data."""
