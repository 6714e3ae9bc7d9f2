"""Probes: how good a representation is on labelled images that it was not trained on.

Importing this package does not import torch, so that a configuration can be read without it.
"""
