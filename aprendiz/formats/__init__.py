"""Files that other programs read: LoRA files, checkpoints, metadata, what a file is, what each host takes of it."""
