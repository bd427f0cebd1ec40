PYTHON ?= $(shell command -v python3.11 || command -v python3)
PRIMENB_REAL ?= data/real
export PRIMENB_REAL
export PATH := $(CURDIR)/.venv/bin:$(PATH)
ready := .venv/.ready

.PHONY: help repro test check lab docs readme bench real full gc data
help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1@/p' $(MAKEFILE_LIST) | awk -F@ '{printf "  make %-8s %s\n", $$1, $$2}'

repro: $(ready)  ## run every experiment whose inputs changed, and say what became of the headline numbers
	dvc pull
	dvc repro
	@python -m primenb.results

# Without a GPU, and two at a time with one thread each, so that the tests are the same everywhere. Each notebook, with all
# its cells as a reader runs it, and each file of tests has a process of its own: what loads LLVM with torch clashes with
# the LLVM of Mesa, once something has been drawn.
test: export CUDA_VISIBLE_DEVICES :=
test: $(ready)  ## run all notebooks of the library and all tests
	@python scripts/machine.py
	dvc pull
	find nbs -name "*.ipynb" -not -path "nbs/exp/*" -not -path "*/.*" | sort | OMP_NUM_THREADS=1 xargs -P 2 -n 1 python -m primenb.reports run_all
	ls tests/test_*.py | OMP_NUM_THREADS=1 xargs -P 2 -n 1 pytest -q -rs

check: $(ready)  ## clean the notebooks, export the library, look at names and signatures, run the fast tests: before every commit
	nbdev_clean && python -m primenb.docstrings
	python -m primenb.reports deps
	ruff check
	pyright
	ls tests/test_*.py | OMP_NUM_THREADS=1 xargs -P 2 -n 1 pytest -q -m "not slow"

lab: $(ready)  ## open the notebooks in JupyterLab
	jupyter lab nbs

docs: $(ready)  ## build the site in _docs/html
	python -m primenb.site

readme: $(ready)  ## run nbs/results.ipynb and nbs/index.ipynb, and make README.md of it
	for nb in results index; do jupyter nbconvert --to notebook --execute --inplace --log-level WARN \
	--KernelManager.transport_encryption=auto nbs/$$nb.ipynb && nbdev_clean --fname nbs/$$nb.ipynb || exit 1; done
	python -m primenb.reports readme

bench: $(ready)  ## measure speed beside other libraries, into runs/bench
	pip install -q --no-deps -c constraints.txt motion-vector-extractor
	python bench/motion.py
	python bench/media.py
	python bench/cameras.py
	python bench/clip.py
	python bench/masks.py
	python bench/scenes.py

real: $(ready)  ## run the experiments on the real footage in the folder PRIMENB_REAL, into results
	@test -d "$(PRIMENB_REAL)" || { echo "There is no folder $(PRIMENB_REAL). Name the one with the footage: make real PRIMENB_REAL=/path/to/films"; exit 1; }
	set -e; for params in params/real/*.yaml; do stage=$$(basename $$params .yaml); \
	python -m primenb.reports run nbs/exp/$$stage.ipynb $$params results/$$stage -p date="'$$(date +%F)'"; done

full: $(ready)  ## run the experiments with all the data and for longer, into results/full (hours)
	python -m primenb.studio.make runs/mgm/corpus clips
	python -m primenb.studio.make runs/scenes/corpus films
	set -e; for params in params/full/*.yaml; do stage=$$(basename $$params .yaml); \
	python -m primenb.reports run nbs/exp/$$stage.ipynb $$params results/full/$$stage -p date="'$$(date +%F)'"; done

gc: $(ready)  ## drop from the store what dvc.lock and data.dvc do not need
	dvc gc --workspace --cloud --force

data: $(ready)  ## make the starter corpus again, or what is missing of it, and store it
	python scripts/starter_film.py data/starter
	python -m primenb.studio.make data
	dvc add data && dvc push

# The stamp is written last: an installation that was interrupted is taken up again and never taken for finished.
$(ready): constraints.txt settings.ini setup.py pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	pip install -q -c constraints.txt -e ".[dev,all]"
	@touch $@
