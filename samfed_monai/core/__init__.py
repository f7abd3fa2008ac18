"""The base of all other packages, none of which it imports: errors, files, seeds, progress, a registry."""
