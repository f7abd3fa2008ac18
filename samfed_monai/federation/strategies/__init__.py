"""What the server does with the answers: one strategy per file, all of them offered by the room itself."""
