"""One folder per composite op: contract, reference, kernel, plugin."""
