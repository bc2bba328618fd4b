"""Builds the bundled conversations: small talk written by hand, and talk about stories derived by rule.

The walk: `story` reads a story, `facts` finds what can safely be said about it, `telling` and `chatting` turn
both into conversations with the wording of `phrases` (phrases.txt, words.txt), `real` filters a few
conversations of others, and `sources` writes down where everything comes from.
"""
