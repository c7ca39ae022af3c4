"""The claims of "Deep Residual Learning for Image Recognition", each a command that writes a report."""
