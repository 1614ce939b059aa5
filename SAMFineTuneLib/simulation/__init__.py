"""Simulated users: prompts drawn from a reference mask, and corrections of an answer."""
