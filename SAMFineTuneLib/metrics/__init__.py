"""How well masks agree with a reference, and the confidence of that figure."""
