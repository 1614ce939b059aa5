"""Files with weights: recognising, reading and importing them."""
