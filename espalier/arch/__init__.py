"""What a machine is: frozen data."""
