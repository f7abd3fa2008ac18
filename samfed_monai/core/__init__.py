"""The base of all packages here: errors, files, seeds, progress, a registry. It imports no other of them."""
