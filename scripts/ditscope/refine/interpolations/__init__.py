"""Interpolations: a module each, with `fill(known, settings)`.

It returns the tokens (batch, tokens, size) with what is missing filled in and the keys untouched, and its confidence
(batch, nodes) in [0, 1], 1 at keys. A module of the user's own is one too.
"""
