"""Videos into a bank: one decode for all features, on one machine or many."""
