"""Files that hold weights: recognising, reading and importing them."""
