"""CS180 project 5B from its own atoms: network, digits, methods, loop, scores, studies."""
