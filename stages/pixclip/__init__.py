"""PixCLIP: a CLIP that looks at an image through a mask, and reads long texts by a language model's embeddings."""
