"""A paper's table beside ours: what it prints, what is run for it, and how far the two are apart."""
