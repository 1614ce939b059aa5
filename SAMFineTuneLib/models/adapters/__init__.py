"""Adapters: how a model is tuned, the folder and card of the result, merging and exporting."""
