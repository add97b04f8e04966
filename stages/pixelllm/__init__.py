"""PixelLLM: a language model that sees an image and says, with every word, where in it the word is (2312.09237)."""
