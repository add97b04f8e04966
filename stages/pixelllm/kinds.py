"""The kinds of sources that teach a PixelLLM, by the names that recipes use. Imports nothing."""

CAPTION = "caption"  # words about the whole image
TRACE = "trace"  # words, and where in the image each of them is
REFER = "refer"  # an expression, and the box that it means; its words are not learnt
SEGMENT = "segment"  # the same, and the pixels that it means
REGION = "region"  # words about a box
DENSE = "dense"  # words about boxes, and proposals that find these boxes
KINDS = (CAPTION, TRACE, REFER, SEGMENT, REGION, DENSE)
