"""Colours of all plots, for light and dark pages: distinct for colour-blind readers, at least 3:1 against the page.

The hues are those of Okabe and Ito; for white, those that are too faint on it are darkened.
"""

INK, FAINT, GRID, PAGE = "#1f2328", "#5f6873", "#dfe3e8", "#ffffff"
BLUE, VERMILLION, GREEN, PURPLE, OCHRE = "#0072b2", "#d55e00", "#00805f", "#a8487e", "#8f6b00"
COLOURS = {"layerwise": VERMILLION, "widthwise": BLUE, "both": GREEN}
"""By mode."""
LINES = (BLUE, VERMILLION, GREEN, PURPLE, OCHRE)
"""For lines without a mode; their markers differ, too."""
ENDS = {"finished": GREEN, "stopped": FAINT, "failed": PURPLE}
DARK = {
    INK: "#e6e9ee",
    FAINT: "#9aa4b0",
    GRID: "#30363d",
    PAGE: "#14171c",
    BLUE: "#56b4e9",
    VERMILLION: "#f0803c",
    GREEN: "#2ebd94",
    PURPLE: "#d78cb8",
    OCHRE: "#e6c200",
}
"""The colour of a dark page in place of each."""


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""
    darker, lighter = sorted(map(_luminance, (one, other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
