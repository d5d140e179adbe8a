"""What was found: records, comparisons, tables and pages that are made of them."""
