"""Which number can be believed: what splits mix, and what features saw that they should not."""
