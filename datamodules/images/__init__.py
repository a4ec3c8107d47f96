"""Images as splits: from encoded bytes, or from arrays of pixels, to squares of one size."""
