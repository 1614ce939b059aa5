"""Network definitions, one architecture a file; each needs PyTorch and is imported only when it is used."""
