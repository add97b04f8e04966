"""CLOC (arXiv 2410.02746): a CLIP whose image encoder can be prompted with boxes and with words."""
