"""Builds, verifies and times an artifact's engine on a GPU."""
