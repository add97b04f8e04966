"""One loop for every training stage. Knows no loss."""
