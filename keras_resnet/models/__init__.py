"""The networks: configurations, blocks and the functional graph. No weights, no data."""
