"""The families: each a file of pure functions that ends in a `Model`."""
