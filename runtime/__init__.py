"""Runs an artifact: state, sampling, chat, generation. Imports neither torch nor transformers nor deltart.export."""
