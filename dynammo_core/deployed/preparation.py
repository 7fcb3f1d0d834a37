"""How an image file becomes the pixels that a model takes, in words that suffice to program it without this project."""

from __future__ import annotations

from dynammo_core.data.images.reading import FROM_FILE, WINDOWS, Fit, Window

FRAMES = {
    None: "A file with several frames or pages is refused.",
    1: "Of a file with several frames or pages the first is taken.",
}
DEPTH = (
    "Bits per channel: what the file's header says, whatever a library makes of it. At most 8 bits without a sign: the "
    "values as they are, spread to 0..255 where there are fewer bits; palettes, CMYK and YCbCr become RGB as Pillow's "
    "convert('RGB') makes it; profiles of colour are ignored. {deep}"
)
DEEP_REFUSED = "More bits, signs or floats, except in DICOM: refused."
DEEP_WINDOWED = (
    "More bits, signs or floats: the window of {centre:g} (centre c) and {width:g} (width w) in the file's own units, "
    "by LINEAR for integers and LINEAR_EXACT for floats; then 255 - y where the file says that white is zero."
)
HOUNSFIELD_ONLY = " The window is in Hounsfield units: values without a sign, and DICOM of other units, are refused."
UNITS_KNOWN = ", if RescaleType is HU, or is absent and Modality is CT and there is a RescaleIntercept"
FUNCTIONS = (
    "Windows, in float64, y rounded to the nearest integer, halves to the even one. LINEAR: y = 0 if x <= c - 0.5 - "
    "(w - 1) / 2, 255 if x > c - 0.5 + (w - 1) / 2, else ((x - (c - 0.5)) / (w - 1) + 0.5) * 255. LINEAR_EXACT: y = 0 "
    "if x <= c - w / 2, 255 if x > c + w / 2, else ((x - c) / w + 0.5) * 255. SIGMOID: y = 255 / (1 + exp(-4 * (x - c) "
    "/ w))."
)
DICOM = (
    "DICOM: stored values without the bits above BitsStored. Grey: through the modality LUT, else x * RescaleSlope + "
    "RescaleIntercept (1 and 0 where absent; in multi-frame files those of the frame); then {window}; then 255 - y for "
    "MONOCHROME1; then 0 where the stored value is pixel padding. Palettes: the table's colours, of 16-bit tables the "
    "high byte. RGB and YBR of 8 bits: as RGB; RGB of more: {rgb}. Overlays, shutters and presentation states are not "
    "applied."
)
DICOM_FROM_FILE = (
    "the VOI LUT, whose entries e of b bits become e * 255 / (2^b - 1), else the first window, by VOILUTFunction or "
    "LINEAR; a file with neither is refused, unless it has at most 8 bits, no sign and no rescaling: x * 255 / "
    "(2^BitsStored - 1)"
)
ALPHA = (
    "Transparency: over black, after the window: each channel v of opacity a becomes v * a / 255 (a / 65535 if it has"
    " 16 bits), rounded to the nearest integer."
)
ORIENTATION = "Orientation: rows and columns are turned as EXIF's or TIFF's tag Orientation says."
FITS: dict[Fit, str] = {
    "stretch": "Shape: height and width each become S.",
    "crop": "Shape: the middle square of side s = min(H, W) from row (H - s) // 2 and column (W - s) // 2; height and "
    "width each become S.",
    "pad": "Shape: the longer side L becomes S, the shorter one l becomes n = max(1, floor(S * l / L + 1/2)); black "
    "fills up to S x S, (S - n) // 2 rows or columns at the top or left and the rest at the bottom or right.",
}
RESIZE = (
    "Resizing: first the width, then the height, each rounded to bytes; an axis that keeps its length is left. Pixel "
    "i of an axis from m to n is centred at z = (i + 0.5) * m / n. With r = max(m / n, 1), the pixels j from "
    "max(floor(z - r + 0.5), 0) to below min(floor(z + r + 0.5), m) weigh max(0, 1 - |j + 0.5 - z| / r), divided by "
    "their sum. Weights become integers floor(weight * 2^p + 0.5), p being the largest up to 22 for which all of the "
    "axis are below 2^15. The sum of weights times pixels, plus 2^(p - 1), shifted right by p, is the pixel. Pillow's"
    " resize with BILINEAR differs by at most 1 of 255."
)
CHANNELS = "Channels: RGB; grey images have three equal channels. Bytes from 0 to 255; nothing is normalised here."


def preparation_in_words(image_size: int, fit: Fit, window: Window, frame: int | None) -> str:
    """Return the steps from a file to the model's pixels, numbered, one a line; S is `image_size`.

    Args:
        image_size: side of the model's input in pixels.
        fit: how images that are not square become so.
        window: what the model was trained with, as `data.window` takes it.
        frame: the frame that is taken, from 1, or None.
    """
    named = isinstance(window, str) and window != FROM_FILE
    pair = WINDOWS[window] if named and isinstance(window, str) else window
    if isinstance(pair, str):
        deep, dicom, rgb = DEEP_REFUSED, DICOM_FROM_FILE, "refused"
    else:
        deep = DEEP_WINDOWED.format(centre=pair[0], width=pair[1]) + (HOUNSFIELD_ONLY if named else "")
        dicom = "the same window, by LINEAR" + (UNITS_KNOWN if named else "")
        rgb = "refused" if named else "the same window, by LINEAR"
    steps = (
        FRAMES.get(frame, f"Of a file with several frames or pages number {frame}, counted from 1, is taken."),
        DEPTH.format(deep=deep),
        DICOM.format(window=dicom, rgb=rgb),
        FUNCTIONS,
        ALPHA,
        ORIENTATION,
        FITS[fit],
        RESIZE,
        CHANNELS,
    )
    return "\n".join(f"{number}. {step}" for number, step in enumerate((f"S is {image_size} pixels.", *steps), start=1))
