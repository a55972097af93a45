# The project's own commands, for any make and sh. What each installs in .venv is remembered there,
# so that a second run installs nothing.
.POSIX:

BACKEND = jax
PYTHON = python3
# Handed to every `pip install`, e.g. PIP_FLAGS="--extra-index-url ..." for a CPU build of torch.
PIP_FLAGS =
# Handed to tests/run_suite.py, e.g. ARGS="--backends jax -k resnet".
ARGS =

STAMPS = .venv/.stamps
PIP = .venv/bin/python -m pip --disable-pip-version-check install $(PIP_FLAGS) -c constraints.txt
# Of pip's report only the downloads that take time; its warnings and errors go to stderr as they are.
DOWNLOADS = sed -n 's/^ *Downloading \([^ ]*\) (\([0-9.]* MB\))$$/  \1  \2/p'
LONG_FUNCTIONS = C901,PLR0913,PLR0915

help:
	@echo 'make demo [BACKEND=jax|tensorflow|torch]   train a pair on digits, write demo-output/report.html  (default $(BACKEND))'
	@echo 'make test [ARGS="-k resnet"]               the suite, under all three backends'
	@echo 'make test-all                              the same with the slow tests'
	@echo 'make test-newest-keras                     the tests of kernels and layers on keras-nightly'
	@echo 'make lint                                  ruff (rules, formatting) and mypy'
	@echo 'make docs                                  the documentation as a site, in build/site'
	@echo 'make clean                                 remove what the others wrote, but not .venv'
	@echo
	@echo 'PYTHON=python3.12 chooses the interpreter, PIP_FLAGS="..." adds options to pip install.'

demo: check-backend $(STAMPS)/$(BACKEND)
	.venv/bin/zoo demo --output demo-output --backend $(BACKEND)

test: $(STAMPS)/test
	.venv/bin/python tests/run_suite.py $(ARGS)

test-all: $(STAMPS)/test $(STAMPS)/scale
	.venv/bin/python tests/run_suite.py --all $(ARGS)

# Everything but Keras comes from .venv; its folder is found after that of .venv-newest.
NEWEST = tests/test_kernels.py tests/test_layers.py tests/test_layer_checks.py tests/test_keras_internals.py \
	tests/test_functional.py tests/test_adamw.py
test-newest-keras: $(STAMPS)/test
	@rm -rf .venv-newest
	@.venv/bin/python -m venv .venv-newest
	@.venv-newest/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(PIP_FLAGS) keras-nightly
	@site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	.venv/bin/python -c "$$site" > "$$(.venv-newest/bin/python -c "$$site")/venv.pth"
	@.venv-newest/bin/python -c 'import keras; print("Keras", keras.__version__)'
	@failed=; for backend in jax tensorflow torch; do echo "Testing on $$backend"; \
	KERAS_BACKEND=$$backend .venv-newest/bin/python -m pytest -q -m 'not slow' -p no:cacheprovider $(NEWEST) || \
	failed="$$failed $$backend"; done; test -z "$$failed" || { echo "Failed on:$$failed" >&2; exit 1; }

lint: $(STAMPS)/lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@.venv/bin/ruff check --quiet --exit-zero --output-format concise --select $(LONG_FUNCTIONS) . | sed 's/^/warning: /'

docs: $(STAMPS)/docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
	@echo 'Open build/site/index.html'

clean:
	rm -rf .venv-newest build dist demo-output experiment-output *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

check-backend:
	@case '$(BACKEND)' in jax|tensorflow|torch) ;; \
	*) echo "BACKEND is jax, tensorflow or torch, not '$(BACKEND)'." >&2; exit 1 ;; esac

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	found=$$($(PYTHON) --version 2>/dev/null) || found='not there'; \
	echo "Python 3.11 or newer is needed; $(PYTHON) is $$found. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo 'Making .venv'
	@$(PYTHON) -m venv .venv
	@mkdir -p $(STAMPS)
	@touch $@

# A pipe ends with sed's status, so the stamp says whether pip succeeded.
$(STAMPS)/$(BACKEND): $(STAMPS)/venv pyproject.toml constraints.txt
	@echo 'Installing the library with $(BACKEND)'
	@rm -f $@
	@{ $(PIP) -e '.[$(BACKEND),onnx,report,serve]' && touch $@; } | $(DOWNLOADS); test -f $@

$(STAMPS)/test: $(STAMPS)/venv pyproject.toml constraints.txt requirements-oracle.txt
	@echo 'Installing the library with all three backends, and the implementations it is compared with'
	@rm -f $@
	@{ $(PIP) -e '.[all,dev,oracle,docs]' && \
	$(PIP) --no-deps -r requirements-oracle.txt && touch $@; } | $(DOWNLOADS); test -f $@
	@touch $(STAMPS)/jax $(STAMPS)/tensorflow $(STAMPS)/torch $(STAMPS)/lint $(STAMPS)/docs

$(STAMPS)/scale: $(STAMPS)/test
	@echo 'Installing Ray, Lance and schemathesis'
	@rm -f $@
	@{ $(PIP) -e '.[scale,lance,fuzz]' && touch $@; } | $(DOWNLOADS); test -f $@

$(STAMPS)/lint: $(STAMPS)/venv constraints.txt
	@echo 'Installing ruff and mypy'
	@rm -f $@
	@{ $(PIP) ruff mypy numpy && touch $@; } | $(DOWNLOADS); test -f $@

$(STAMPS)/docs: $(STAMPS)/venv pyproject.toml constraints.txt
	@echo 'Installing mkdocs'
	@rm -f $@
	@{ $(PIP) -e '.[docs]' && touch $@; } | $(DOWNLOADS); test -f $@

.PHONY: help demo test test-all test-newest-keras lint docs clean check-backend
