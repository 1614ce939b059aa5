"""Adapters: how a model is tuned, the folder and the card of what was learned, merging and exporting."""
