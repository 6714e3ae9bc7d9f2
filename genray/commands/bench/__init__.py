"""`genray bench`, and the measurements behind fields set to "auto"."""
