"Says in one line what this machine lacks, and so which tests are skipped: `python scripts/machine.py`."

import shutil

from primenb.render import DRAWING_PACKAGES, can_draw

lacking = [] if can_draw() else DRAWING_PACKAGES.split()
if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
    lacking += ["chromium", "fonts-dejavu-core"]
if lacking:
    packages = " ".join(lacking)
    print(f"Tests that draw or need a browser will be skipped. On Debian or Ubuntu: apt-get install {packages}")
