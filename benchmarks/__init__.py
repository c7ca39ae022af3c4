"""Compares this project with others, measured in turn in one run, as ratios; see benchmarks/README.md."""
