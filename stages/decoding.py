"""Proves that a sample can be used: its schema, its image to the last pixel, every mask."""

from collections.abc import Mapping

from orchestrator.errors import InputError
from stages.samples import Sample
from stages.vision import decode_image, mask_from_rle


def prove(key: str, members: Mapping[str, bytes]) -> None:
    """Decodes everything in a sample; raises InputError with the reason if it cannot be used."""
    sample = Sample.from_members(key, members)
    image = decode_image(sample.image)
    if image.size != (sample.width_px, sample.height_px):
        found, told = f"{image.width} x {image.height}", f"{sample.width_px} x {sample.height_px}"
        raise InputError(f"sample {key!r}: its image has {found} px, its json says {told} px")
    for number, region in enumerate(sample.regions):
        if region.mask is None:
            continue
        try:
            mask_from_rle(region.mask)
        except InputError as error:
            raise InputError(f"sample {key!r}: regions[{number}].mask: {error}") from None
