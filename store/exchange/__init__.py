"""Banks in and out: one file per format, and what every import does."""
