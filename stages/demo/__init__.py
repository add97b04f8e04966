"""A page on this machine where one asks an exported model about a picture: `orch demo`."""
