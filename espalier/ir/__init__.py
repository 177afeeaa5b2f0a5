"""What a network means: typed, frozen graphs and their exact interpreter."""
