"""From a bank to numbers: splits, fits, predictions on test parts."""
