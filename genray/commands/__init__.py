"""Commands, a module for each, and what they print."""
