"""What a composite op becomes on each target: a row per op in each file."""
