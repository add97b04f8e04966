"""Weights that other programs wrote: read tensor by tensor, never by running what a file asks for."""
