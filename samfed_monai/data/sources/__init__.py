"""Sources of images: one official layout per file; each lists the files found, none assigns them to sites."""
