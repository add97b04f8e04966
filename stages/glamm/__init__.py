"""GLaMM: a language model that sees an image, reads boxes and points at pixels."""
