"""What a site gives and takes that keeps a network of its own: the counterpart of a strategy, one per file."""
