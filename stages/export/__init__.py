"""A checkpoint becomes what the ecosystem loads."""
