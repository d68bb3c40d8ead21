"""The nano checkpoint: its tasks, tokenizer, training recipe and evaluation (see README.md)."""
