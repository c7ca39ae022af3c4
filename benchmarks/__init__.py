"""Ours against the peers, measured in turn in one run, as ratios; see benchmarks/README.md."""
