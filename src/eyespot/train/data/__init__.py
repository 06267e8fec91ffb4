"""Data: other people's formats into one Record, checked. Reads pictures' headers and pixels, knows no model."""
