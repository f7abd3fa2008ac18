"""What every room stands on: errors, files, seeds, progress, a registry. It imports nothing else of the package."""
