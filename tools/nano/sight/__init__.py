"""Nano with eyes: a small vision tower on nano's text model, trained on pictures that are drawn from seeds."""
