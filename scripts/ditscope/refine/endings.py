"""How files end that the sources `images` and `films` take from a folder: what a data set holds follows from it."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FILMS = (".gif", ".webp", ".mp4")
