"""LoRA adapters put into checkpoints: a checkpoint and an adapter in, a checkpoint out."""
