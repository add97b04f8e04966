"""Pix2Cap-COCO: every segment of a picture, things and stuff, with a class and a caption of its own."""
