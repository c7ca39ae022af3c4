"""Exports detectors and verifies the exported files."""
