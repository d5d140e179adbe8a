"""One page of what was found: made of records, and of what a bank knows of their videos."""
