"""Annotated cases: images with label maps, their slices, and splits by patient."""
