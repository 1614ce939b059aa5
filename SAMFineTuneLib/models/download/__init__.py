"""Published models: the manifest, and downloads that are resumed and verified."""
