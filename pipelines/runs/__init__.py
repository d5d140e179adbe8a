"""What the command line and `vqbank.*` both call: extract, evaluate, train, predict.

A run is asked for, refused where it cannot be, and only then imports what takes seconds.  It prints
nothing: lines go to the logger `vqbank`, progress to a callback, and what comes of it is returned.
"""
