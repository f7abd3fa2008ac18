"""One file per method, beside the JSON of its variant; a bundle names a class by its file."""
