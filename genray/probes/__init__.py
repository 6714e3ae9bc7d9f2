"""How good a representation is, judged on labelled images that it was not trained on.

Importing this package needs no torch, so that a configuration can be read without it.
"""
