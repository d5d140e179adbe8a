"""Which rows are fitted, which choose, and which are tested: our splits, those of papers, files."""
