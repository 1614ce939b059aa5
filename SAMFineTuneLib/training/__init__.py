"""Pre-training on synthetic pictures and fine-tuning on a few cases; importing this package loads no PyTorch."""
