# make report   compute the digits results on this machine and render the book
# make test     lint, types and tests
# make kill-test  a grid killed at 50 random moments, resumed, against one that nobody disturbs
# make cluster-test  six cells through Slurm on this machine; root, with Debian's slurm-wlm and munge
# make worksheets  the walkthroughs without solutions, for a class, and with them, as zips in _build
# make pdf      the book that `make report` made, as _build/book.pdf; needs Chromium
# make bench    speed of a search step, against the published loop and plain training
# Each sets up what it needs: .venv with the versions of requirements.lock.
PYTHON ?= python3.11
JOBS ?= 2
export NM_DISABLE_ANALYTICS = True
export PYDEVD_DISABLE_FILE_VALIDATION = 1
BIN := .venv/bin
READY := .venv/ready
UV := $(BIN)/uv

.PHONY: report test check kill-test cluster-test bench pdf worksheets lock clean

report: $(READY)
	rm -rf runs/report
	$(BIN)/python notebooks/run.py grid quick --jobs $(JOBS) -p runs=runs/report
	$(BIN)/python notebooks/run.py pages --jobs $(JOBS)
	$(BIN)/jupyter-book build book -n -W --keep-going --all -q
	$(BIN)/python book/check.py _build/html
	@echo "The book is at $(CURDIR)/_build/html/index.html"

test: check
	$(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/mypy

kill-test: $(READY)
	$(BIN)/python tests/kills.py 50

cluster-test: $(READY)
	$(BIN)/python tests/slurm.py

pdf: $(READY)
	$(BIN)/jupyter-book build book -n -W --keep-going --all -q --builder singlehtml
	chromium --headless --no-sandbox --disable-gpu --no-pdf-header-footer --virtual-time-budget=20000 \
	  --print-to-pdf=_build/book.pdf file://$(CURDIR)/_build/singlehtml/index.html

worksheets: $(READY)
	$(BIN)/python book/worksheets.py _build

bench: $(READY)
	$(BIN)/python notebooks/benchmarks/speed.py

$(READY): requirements.lock pyproject.toml
	test -x $(UV) || { $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep -o '^uv==[^ ]*' requirements.lock)"; }
	$(UV) pip sync --quiet --python .venv --require-hashes requirements.lock
	$(UV) pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	touch $@

lock: $(READY)
	$(UV) pip compile pyproject.toml --universal --python-version 3.10 --all-extras --generate-hashes \
	  --no-emit-index-url --quiet --output-file requirements.lock

clean:
	rm -rf _build book/runs book/generated runs/report
