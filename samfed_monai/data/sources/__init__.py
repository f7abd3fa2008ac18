"""Where images come from: one official layout per file, each returning what it found, none deciding who gets it."""
