"""Picture files and their pixels."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from layerlens.errors import InputError


def read_picture(path: str | Path) -> Image.Image:
    """Open a picture file.

    Raises:
        InputError: when there is no such file, or it is not a picture.
    """
    try:
        with Image.open(path) as opened:
            picture: Image.Image = opened.copy()
            return picture
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}.") from None
    except IsADirectoryError:
        raise InputError(f"{str(path)!r} is a folder, not a picture.") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error and others for damaged files
        raise InputError(f"{str(path)!r} cannot be read as a picture ({error}).") from None


def upright(picture: Image.Image) -> Image.Image:
    """Return a picture turned as its camera noted, with transparent pixels as white."""
    turned: Image.Image = ImageOps.exif_transpose(picture)
    if turned.mode.endswith(("A", "a")) or "transparency" in turned.info:
        return Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned.convert("RGBA"))
    return turned


def check_8_bit(picture: Image.Image) -> None:
    """Check that the brightness of a picture has a fixed range.

    Raises:
        InputError: for a picture of more than 8 bits per channel.
    """
    if picture.mode.startswith(("I", "F")):
        raise InputError(
            f"a picture of mode {picture.mode!r} has no fixed range of brightness. Scale it to 0..255 and make it "
            "8-bit: Image.fromarray(array.astype('uint8'))"
        )
