"""Runs an artifact. Imports neither torch nor transformers nor deltart.export."""
