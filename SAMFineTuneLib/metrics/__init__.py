"""How well masks agree with a reference, and how sure that figure is."""
