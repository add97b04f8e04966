"""What is said of a region alone, beside what is said of the image that it lies in, and how a question names one."""

from stages.samples import Region

BOX = "<bbox>"  # in a question: the next one of the boxes that come with it


def described(region: Region) -> tuple[str, ...]:
    """Lists what is said about a region alone: its caption, or else each phrase that is no part of a caption."""
    texts = (region.caption,) if region.caption.strip() else (region.phrase, *region.more_phrases)
    if region.spans and not region.caption.strip():
        return ()
    return tuple(text.strip() for text in texts if text.strip())
