"""Data sets of square images of one size, from encoded bytes or from pixel arrays."""
