"""Prompts in the scene: markups nodes, synchronised with the session."""
