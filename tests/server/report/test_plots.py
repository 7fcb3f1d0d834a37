"""What figures promise to a reader: numbers that can be read on their cells, and names that fit."""

from __future__ import annotations

from server.report.plots import SHADES, readable_on, shortened


def test_numbers_can_be_read_on_every_shade_of_a_matrix() -> None:
    def luminance(colour: tuple[float, ...]) -> float:
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3])
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    for percent in range(101):
        shade = SHADES(percent / 100)
        ends = sorted((luminance(shade), {"white": 1.0, "black": 0.0}[readable_on(shade)]))
        assert (ends[1] + 0.05) / (ends[0] + 0.05) >= 4.5, percent
    assert {readable_on(SHADES(0.0)), readable_on(SHADES(1.0))} == {"black", "white"}


def test_a_long_name_keeps_both_ends() -> None:
    assert shortened("x" * 24) == "x" * 24
    assert shortened("University Hospital of the City, ward 7") == "University H…ity, ward 7"
    assert len(shortened("y" * 100, 7)) == 7
