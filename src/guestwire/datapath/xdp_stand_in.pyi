"""C functions only; nothing to import from Python."""
