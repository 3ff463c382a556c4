.PHONY: install test lint docs
install: ; pip install -e '.[test,docs]'
test: ; python -m pytest
lint: ; ruff check . && mypy
docs: ; mkdocs build --strict
