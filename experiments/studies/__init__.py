"""One module for each experiment: its runs, measurements, claims and figures."""
