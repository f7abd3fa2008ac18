"""One method, one file, and beside it the JSON that turns it on; a bundle names a class by its file."""
