"""Predictions in, a Report out; knows no model."""
