"""Makes the first starter film: two photographs that scikit-learn ships, panned, zoomed and cut, with ground truth.

    python scripts/starter_film.py data/starter

writes starter.mp4 (H.264 as the web has it), starter.csv (for each frame its shot, and where the picture's middle
and scale lie on the photograph, from which the true displacement of every pixel follows), truth.json and README.md.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from sklearn.datasets import load_sample_image

from primenb.media.video import encode

WIDTH, HEIGHT, RATE = 384, 216, 24

# photograph, seconds, (x, y, scale) at the first and at the last frame; scale is photograph pixels per film pixel
SHOTS = [
    ("china", 3.0, (200, 150, 0.95), (440, 150, 0.95)),  # pan right over the roofs
    ("flower", 2.0, (320, 230, 1.30), (320, 200, 0.70)),  # push in
    ("china", 1.5, (330, 320, 0.60), (330, 320, 0.60)),  # held still
    ("china", 2.5, (150, 300, 0.70), (150, 120, 0.70)),  # tilt up, cut within one photograph
    ("flower", 2.5, (450, 130, 0.60), (200, 290, 0.60)),  # diagonal pan
    ("china", 2.0, (400, 230, 0.50), (330, 215, 1.55)),  # pull out
    ("flower", 1.0, (180, 140, 0.80), (180, 140, 0.80)),  # held still
    ("china", 1.5, (450, 120, 0.90), (220, 120, 0.90)),  # fast pan left
    ("flower", 3.0, (250, 210, 0.65), (400, 210, 0.65)),  # pan right
    ("china", 2.0, (480, 330, 0.55), (480, 330, 0.55)),  # held still
    ("flower", 1.5, (320, 300, 0.90), (320, 130, 0.90)),  # fast tilt
    ("china", 2.5, (320, 200, 0.80), (360, 210, 0.60)),  # slow drift in
]


def ease(t):
    "Starts and stops gently, as a camera on a tripod does; 0 to 1 for t from 0 to 1."
    return t * t * (3 - 2 * t)


def frame_table():
    "One row per frame: shot, photograph, and the view (x, y, scale) on it."
    rows = []
    for shot, (photo, seconds, begin, end) in enumerate(SHOTS):
        n = round(seconds * RATE)
        for i in range(n):
            view = np.add(begin, ease(i / (n - 1)) * np.subtract(end, begin))
            rows.append((shot, photo, *view.round(6)))
    table = pd.DataFrame(rows, columns=["shot", "photo", "x", "y", "scale"])
    table.insert(0, "frame", range(len(table)))
    return table


def render(photo, x, y, scale):
    "The photograph through a window of WIDTH x HEIGHT pixels, its middle at (x, y)."
    if not (
        WIDTH / 2 * scale <= x <= photo.shape[1] - WIDTH / 2 * scale
        and HEIGHT / 2 * scale <= y <= photo.shape[0] - HEIGHT / 2 * scale
    ):
        raise ValueError(f"the view {x, y, scale} leaves the photograph of {photo.shape[1]}x{photo.shape[0]}")
    to_photo = np.array([[scale, 0, x - scale * (WIDTH - 1) / 2], [0, scale, y - scale * (HEIGHT - 1) / 2]])
    smooth = cv2.GaussianBlur(photo, (0, 0), 0.4 * scale) if scale > 1 else photo
    return cv2.warpAffine(smooth, to_photo, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)


README = """# The first film

`starter.mp4` shows two photographs that scikit-learn ships through a moving window: panned, tilted, \
pushed in, pulled out,
held still, and cut. `starter.csv` has for each frame its shot, photograph and window (x, y: the window's middle on the
photograph in pixels; scale: photograph pixels per film pixel). `truth.json` lists the true cuts. Made by
`scripts/starter_film.py`; the same versions on the same machine make the same bytes.

The photographs come from scikit-learn's `datasets/images` and are shared under CC BY 2.0 \
(creativecommons.org/licenses/by/2.0):
china.jpg by danielbuechele (flickr.com/photos/danielbuechele/6061409035), flower.jpg by vultilion
(flickr.com/photos/vultilion/6056698931). Cut, resized and moved by us.
"""


def main(out):
    photos = {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    table = frame_table()
    pictures = (render(photos[row.photo], row.x, row.y, row.scale) for row in table.itertuples())
    film = encode(Path(out) / "starter.mp4", pictures, RATE, crf=21, options={"threads": "1"})
    table.to_csv(film.with_suffix(".csv"), index=False)
    cuts = np.flatnonzero(np.diff(table["shot"])) + 1
    (film.parent / "truth.json").write_text(
        json.dumps({film.name: {"cuts": cuts.tolist(), "views": "starter.csv"}}) + "\n"
    )
    (Path(out) / "README.md").write_text(README)
    print(f"{film}: {len(table)} frames, {film.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "data/starter")
