"""Prompts in the scene: markups nodes, kept in step with the session."""
