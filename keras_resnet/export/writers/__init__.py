"""One writer per artifact format; each writes the same folded graph."""
