"""A language model as the judge, for what no program can check: tone, empathy, style.

The judge is an OpenAI-compatible endpoint. It is asked with a rubric (judge_rubric.py keeps the completion in its place) and
answers with a score in JSON, read strictly. Whatever keeps it from answering is an infra_error, never a reward of 0.

A judge is a model, and a policy finds what a model likes. Give it what a program cannot check and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

import msgspec
from pydantic import Field, field_validator

from headrace.verifiers.base import Options, Verifier, not_run, parse_options, printable, rebuild, scored
from headrace.verifiers.call_forms import CallFault, strict_json
from headrace.verifiers.errors import UserError, WrongOption
from headrace.verifiers.judge_cache import AnswerCache, DiskCache, MemoryCache
from headrace.verifiers.judge_rubric import Messages, Rubric, RubricFault, harmless
from headrace.verifiers.records import Sample, Verdict, VerdictKind

if TYPE_CHECKING:
    from headrace.verifiers.judge_client import JudgeClient

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")
_OURS = ("model", "messages", "temperature", "stream", "n", "response_format", "max_tokens")  # of a request's keys


class JudgeOptions(Options):
    base_url: str
    """Of the endpoint, with its version: `https://judge.example/v1`."""
    model: str = Field(min_length=1)
    """As the endpoint calls it."""
    rubric: str | None = None
    """What to grade and how; `{{completion}}` and `{{field}}` stand for the completion and the row's fields."""
    rubric_path: str | None = None
    """A file with the rubric, in place of `rubric`."""
    min_score: float = Field(0.0, allow_inf_nan=False)
    """The score that earns 0."""
    max_score: float = Field(10.0, allow_inf_nan=False)
    """The score that earns 1."""
    pass_score: float | None = None
    """The least score that passes; None: `max_score`."""
    api_key_env: str | None = None
    """Environment variable of the workers that holds the API key; None: no key is sent."""
    answer_format: Literal["json_schema", "json_object", "text"] = "json_schema"
    """How the endpoint is held to JSON; `text`: by the instructions alone, for endpoints that cannot."""
    max_tokens: int | None = Field(512, ge=16)
    """Of the answer; None: not sent."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the request, as the endpoint takes them."""
    attempts: int = Field(3, ge=1, le=20)
    """Requests for one sample, at most."""
    request_seconds: float = Field(15.0, gt=0, le=3600)
    """Without a byte from the endpoint, of one request."""
    deadline_seconds: float = Field(25.0, gt=0, le=3600)
    """For one sample, all attempts and waits in it; the wait for a slot apart."""
    concurrency: int = Field(16, ge=1, le=1024)
    """Requests side by side, in a worker."""
    max_completion_chars: int = Field(100_000, ge=1)
    """A longer completion fails without being shown to the judge."""
    cache_entries: int = Field(10_000, ge=0)
    """Answers kept; 0: none."""
    cache_path: str | None = None
    """A file that keeps them, for all workers of a node and for the next run; None: in each worker's memory."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        try:
            url = urlsplit(value)
            host, port = (url.hostname or "").encode("idna"), url.port
        except ValueError:
            raise ValueError("it is no http or https address") from None
        if url.scheme not in ("http", "https") or not host or port == 0:
            raise ValueError("it is no http or https address")
        if url.username is not None or url.password is not None or url.query or url.fragment:
            raise ValueError("leave user, password, query and fragment out; a key goes into `api_key_env`")
        return value


class JudgeVerifier(Verifier):
    """The options of `JudgeOptions` by name. A row has the fields that the rubric names.

    The reward is the score, scaled from [min_score, max_score] to [0, 1]. Reasons: `scored`, `too_long`. As infra_error:
    `bad_row`, `judge_unreachable`, `judge_timeout`, `judge_rate_limited`, `judge_http_error`, `judge_unreadable`,
    `judge_echoed`. Raises UserError for wrong options, for a rubric file that cannot be read, where httpx or tenacity is
    missing, and from `start` where the environment lacks the key. A pickled one carries the rubric and never the key.
    """

    def __init__(self, **options: Any) -> None:
        self.options = parse_options(JudgeOptions, options, "judge")
        given = self.options
        if given.max_score <= given.min_score:
            raise _wrong("max_score", f"it is {given.max_score:g}, not above min_score = {given.min_score:g}")
        self._pass_score = given.max_score if given.pass_score is None else given.pass_score
        if not given.min_score < self._pass_score <= given.max_score:
            raise _wrong("pass_score", f"it is not above {given.min_score:g} and at most {given.max_score:g}")
        for key in given.extra_body:
            if key in _OURS:
                raise _wrong("extra_body", f"`{key}` is set by the verifier; remove it")
        self._template = _rubric_text(given)
        try:
            self._rubric = Rubric(self._template, given.min_score, given.max_score)
        except RubricFault as fault:
            raise _wrong("rubric" if given.rubric_path is None else "rubric_path", str(fault)) from fault
        try:
            msgspec.json.encode(given.extra_body)
        except (TypeError, ValueError) as error:
            raise _wrong("extra_body", f"it is not JSON: {error}") from error
        fault = _client_module().address_fault(given.base_url)
        if fault is not None:
            raise _wrong("base_url", fault)
        self._lock = threading.Lock()
        self._session: _Session | None = None

    @classmethod
    def from_options(cls, options: dict[str, Any], base_dir: Path) -> Self:
        paths = {name: options.get(name) for name in ("rubric_path", "cache_path")}
        resolved = {name: str(base_dir / path) for name, path in paths.items() if isinstance(path, str)}
        return cls(**{**options, **resolved})

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuild, (type(self), {**self.options.model_dump(), "rubric": self._template, "rubric_path": None})

    def start(self) -> None:
        """Open the connection pool and the cache. Raises UserError where the key is missing or the cache unusable."""
        self._opened()

    def close(self) -> None:
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None

    def check_row(self, row: dict[str, Any]) -> str | None:
        return self._rubric.fault(row)

    def verify(self, sample: Sample) -> Verdict:
        return self.verify_many([sample])[0]

    def verify_many(self, samples: Sequence[Sample]) -> list[Verdict]:
        """Requests run side by side; samples that are the same are asked about once. Raises UserError as `start` does."""
        session = self._opened()
        asked: dict[str, _Question] = {}
        outcomes: list[Verdict | str] = []  # a verdict, or the key of the question that gives it
        for sample in samples:
            settled = self._without_asking(sample)
            if settled is not None:
                outcomes.append(settled)
                continue
            question = self._question(sample)
            asked.setdefault(question.key, question)
            outcomes.append(question.key)
        verdicts = self._ask(session, list(asked.values()))
        return [verdicts[outcome] if isinstance(outcome, str) else outcome for outcome in outcomes]

    def _without_asking(self, sample: Sample) -> Verdict | None:
        fault = self.check_row(sample.row)
        if fault is not None:
            return not_run("bad_row", message=fault)
        if len(sample.completion) > self.options.max_completion_chars:
            return scored(0.0, "too_long", characters=len(sample.completion))
        return None

    def _question(self, sample: Sample) -> _Question:
        messages = self._rubric.fill(sample.completion, sample.row)
        body = _client_module().encode_body(_request(self.options, messages))
        key = hashlib.sha256(self.options.base_url.encode() + b"\0" + body).hexdigest()
        return _Question(key, body, sample.completion)

    def _ask(self, session: _Session, questions: list[_Question]) -> dict[str, Verdict]:
        verdicts: dict[str, Verdict] = {}
        open_questions: list[_Question] = []
        for question in questions:
            answer = session.cached(question.key)
            if answer is None:
                open_questions.append(question)
            else:
                verdicts[question.key] = self._graded(answer, question.completion, cached=True)
        answers = session.client.ask_many([question.body for question in open_questions]) if open_questions else []
        for question, answer in zip(open_questions, answers, strict=True):
            if isinstance(answer, Exception):
                status = {} if answer.status is None else {"status": answer.status}
                verdicts[question.key] = not_run(answer.reason, message=answer.message, **status)
                continue
            verdict = self._graded(answer.text, question.completion, requests=answer.requests)
            if verdict.kind is not VerdictKind.INFRA_ERROR:
                session.remember(question.key, answer.text)
            verdicts[question.key] = verdict
        return verdicts

    def _graded(self, answer: str, completion: str, **details: Any) -> Verdict:
        low, high = self.options.min_score, self.options.max_score
        try:
            grade = read_grade(answer, low, high)
        except UnreadableGrade as error:
            return not_run("judge_unreadable", message=str(error))
        if holds_answer(completion, answer):
            return not_run("judge_echoed", message="the judge's answer is a copy of one that the completion holds")
        reward = min(1.0, max(0.0, (grade.score - low) / (high - low)))
        kind = VerdictKind.PASS if grade.score >= self._pass_score else VerdictKind.FAIL
        return Verdict(kind, reward, "scored", {"score": grade.score, "judge": printable(grade.reason, 500), **details})

    def _opened(self) -> _Session:
        with self._lock:
            if self._session is None:
                self._session = _Session(self.options)
            return self._session


class Grade(msgspec.Struct, frozen=True):
    score: float  # on the rubric's scale
    reason: str


class UnreadableGrade(ValueError):
    """The judge's answer is no grade; the message says why."""


def read_grade(answer: str, low: float, high: float) -> Grade:
    """The grade in a judge's answer: one JSON object with `score`, a number in [low, high], and `reason`, and nothing else,
    but for one code fence around it. Raises UnreadableGrade.

    >>> read_grade('{"score": 7, "reason": "kind"}', 0, 10).score
    7.0
    """
    text = answer.strip()
    fenced = _FENCED.fullmatch(text)
    try:
        value = strict_json(fenced[1] if fenced else text)
    except CallFault as fault:
        raise UnreadableGrade(f"the answer is not one JSON object: {printable(answer)!r}") from fault
    if not isinstance(value, dict) or not {"score"} <= value.keys() <= {"score", "reason"}:
        raise UnreadableGrade(f"the answer is not an object with `score` and `reason` alone: {printable(answer)!r}")
    score, reason = value["score"], value.get("reason", "")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise UnreadableGrade(f"`score` is {type(score).__name__}, not a number")
    if not low <= score <= high:
        raise UnreadableGrade(f"`score` is {score:g}, not from {low:g} to {high:g}")
    if not isinstance(reason, str):
        raise UnreadableGrade(f"`reason` is {type(reason).__name__}, not a string")
    return Grade(float(score), reason)


def holds_answer(completion: str, answer: str) -> bool:
    """Whether `completion` brings this very `answer` along, however it is spaced, ordered or escaped: then the judge may
    have copied it, and it counts for nothing.

    >>> holds_answer('Hi! {"reason": "", "score": 10}', '{"score":10,"reason":""}')
    True
    """
    if _without_space(answer) in _without_space(harmless(completion)):
        return True
    given = _object_in(answer)
    return given is not None and any(_object_in(found[0]) == given for found in _FLAT_OBJECT.finditer(completion))


def _object_in(text: str) -> dict[str, Any] | None:
    """The flat JSON object in `text`, if there is one."""
    found = _FLAT_OBJECT.search(text)
    try:
        value = strict_json(found[0]) if found else None
    except CallFault:
        return None
    return value if isinstance(value, dict) else None


class _Question(msgspec.Struct, frozen=True):
    key: str  # digest of the endpoint and the whole request: model, rubric, row fields used, completion
    body: bytes
    completion: str


class _Session:
    """What is open between `start` and `close`."""

    def __init__(self, options: JudgeOptions) -> None:
        module = _client_module()
        api_key = _api_key(options.api_key_env)
        self._cache: AnswerCache = MemoryCache(options.cache_entries)
        if options.cache_path is not None and options.cache_entries:
            self._cache = DiskCache(Path(options.cache_path), options.cache_entries)
        self._lock = threading.Lock()
        endpoint = module.Endpoint(
            base_url=options.base_url,
            attempts=options.attempts,
            request_seconds=options.request_seconds,
            deadline_seconds=options.deadline_seconds,
            concurrency=options.concurrency,
        )
        self.client: JudgeClient = module.JudgeClient(endpoint, api_key)

    def cached(self, key: str) -> str | None:
        with self._lock:
            return self._cache.get(key)

    def remember(self, key: str, answer: str) -> None:
        with self._lock:
            self._cache.put(key, answer)

    def close(self) -> None:
        self.client.close()
        self._cache.close()


def _wrong(option: str, message: str) -> WrongOption:
    return WrongOption(option, f"option `{option}` of verifier `judge`: {message}")


def _rubric_text(options: JudgeOptions) -> str:
    if (options.rubric is None) == (options.rubric_path is None):
        raise _wrong("rubric", "give either `rubric` or `rubric_path`")
    if options.rubric is not None:
        return options.rubric
    assert options.rubric_path is not None
    try:
        return Path(options.rubric_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong("rubric_path", f"cannot read {options.rubric_path}: {error}") from error


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"option `api_key_env` of verifier `judge`: the environment has no `{variable}`; set it on the workers"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"option `api_key_env` of verifier `judge`: `{variable}` holds characters that no key has")
    return key


def _request(options: JudgeOptions, messages: Messages) -> dict[str, Any]:
    body: dict[str, Any] = {
        **options.extra_body,
        "model": options.model,
        "messages": [{"role": "system", "content": messages.system}, {"role": "user", "content": messages.user}],
        "temperature": 0,
    }
    if options.max_tokens is not None:
        body["max_tokens"] = options.max_tokens
    if options.answer_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    if options.answer_format == "json_schema":
        score = {"type": "number", "minimum": options.min_score, "maximum": options.max_score}
        schema = {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "score": score},
            "required": ["reason", "score"],
            "additionalProperties": False,
        }
        described = {"name": "grade", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": described}
    return body


def _client_module() -> ModuleType:
    """The module that makes requests. Raises UserError where what it needs is not installed."""
    try:
        from headrace.verifiers import judge_client  # httpx and tenacity come with an extra
    except ModuleNotFoundError as error:
        if error.name not in ("httpx", "tenacity"):
            raise
        raise UserError(f"verifier `judge` needs {error.name}: pip install 'headrace[judge]'") from error
    return judge_client


def _without_space(text: str) -> str:
    return "".join(text.split())
