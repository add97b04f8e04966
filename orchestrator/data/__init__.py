"""Tars in, batches out. Knows no sample schema."""
