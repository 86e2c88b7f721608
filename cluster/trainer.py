"""A job from its description to its end: what `headrace run` and `GRPOTrainer` (grpo_trainer.py) both do."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import structlog

from headrace.cluster.checkpoint import CheckpointStore
from headrace.cluster.config import CHANGEABLE, JobConfig, RolloutSection, Section
from headrace.cluster.controller import Controller
from headrace.cluster.display import Display, make_display, ticking
from headrace.cluster.dtypes import settle_dtypes
from headrace.cluster.endpoint import Endpoint, ScaleRequest, cannot_listen
from headrace.cluster.event_loop import Interrupts, run_to_end
from headrace.cluster.fleet import VLLM_ENGINE, Fleet
from headrace.cluster.inputs import Inputs
from headrace.cluster.job_file import dump_job, load_job
from headrace.cluster.preparation import PreparedJob, check_engine, prepare
from headrace.cluster.prompt_source import PromptSource
from headrace.cluster.ray_cluster import ClusterInfo, ray_cluster
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_recorder import RunRecorder
from headrace.cluster.run_records import Summary
from headrace.cluster.standard_output import run_console
from headrace.cluster.waits import Stopped
from headrace.learner.optimizer import scheduled_rate
from headrace.verifiers import telemetry
from headrace.verifiers.errors import UserError

log = structlog.get_logger()

LISTED_ROWS = 20  # of the prompts that do not fit


def run_job(
    job: JobConfig,
    inputs: Inputs | None = None,
    *,
    resume: bool = False,
    display: Display | None = None,
    engine_class: str = VLLM_ENGINE,
    started: float | None = None,
) -> Summary | None:
    """Run a job to its end; the summary, or None when it was stopped on request and saved.

    Args:
        inputs: what `read_inputs` gave for this job, where it was called before.
        resume: take up the run in the job's run folder.
        display: shows the run, and is closed with it; by default one on the standard output is made.
        engine_class: what generates; another one than vLLM's is for tests.
        started: Unix time that the run's seconds count from; now, unless the caller began earlier.

    Raises:
        UserError: the input is wrong, found before a model is loaded.
    """
    started = time.time() if started is None else started
    display = make_display(run_console()) if display is None else display
    folder = RunFolder.of(job)
    summary = None
    try:
        prepared, before = checked(job, inputs, folder, resume, display, engine_class)
        job = prepared.job
        display.event("starting Ray" if "RAY_ADDRESS" not in os.environ else "connecting to Ray")
        # The folder is taken last: a job that is refused leaves none behind.
        with (
            Interrupts() as interrupts,
            ticking(display) as stop_ticking,
            ray_cluster(job, interrupts) as cluster,
        ):
            folder.create(resume=resume)
            telemetry.configure_logging(job.job.name, "controller", folder.logs / "controller.jsonl")
            folder.write_data(prepared.data)  # before the job, which makes the folder a run's
            folder.write_job(dump_job(job))
            checkpoint = CheckpointStore(folder.checkpoints, job.checkpoint.keep).newest()
            if before and checkpoint and (bent := schedule_notice(before, job, checkpoint.state.step)):
                log.info("event", line=bent)
                display.event(bent)
            stop_ticking()  # from here on the run's own loop does it
            summary = run_to_end(_run(prepared, folder, display, cluster, engine_class, started, interrupts))
    finally:
        try:
            folder.close()
        finally:
            display.close(summary)
    return summary


def checked(
    job: JobConfig,
    inputs: Inputs | None,
    folder: RunFolder,
    resume: bool,
    display: Display,
    engine_class: str,
) -> tuple[PreparedJob, JobConfig | None]:
    """The job, ready to start, and the one that it takes up. Raises UserError for whatever is wrong; nothing is started."""
    folder.check(resume)
    before = load_job(folder.job) if resume else None
    job = settle_dtypes(job, before)
    if before:
        check_compatible(job, before, folder)
    if engine_class == VLLM_ENGINE:
        check_engine(job.rollout)
    check_port(job.metrics.host, job.metrics.port)
    with ticking(display):
        prepared = prepare(job, inputs, display.event)
    if resume:
        folder.read_data().check_unchanged(prepared.data, folder.data)
    return prepared, before


def check_port(host: str, port: int) -> None:
    """Raises WrongValue when the controller's endpoint could not listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        except OSError as error:
            raise cannot_listen(host, port, error) from error


def check_compatible(job: JobConfig, before: JobConfig, folder: RunFolder) -> None:
    """Raises UserError, naming the key, when the run in the folder had another job than this one."""
    for name in JobConfig.model_fields:
        section, old = getattr(job, name), getattr(before, name)
        if not isinstance(section, Section) or not isinstance(old, Section):
            if section != old:
                raise UserError(f"--resume: [{name}] is not as it was in {folder.job}; resume with the same job")
            continue
        was = old.model_dump(mode="json")
        for key, value in section.model_dump(mode="json").items():
            if value != was[key] and CHANGEABLE not in type(section).model_fields[key].metadata:
                raise UserError(
                    f"--resume: {name}.{key} is {value!r}, but the run in {folder.path} has {was[key]!r}; "
                    "resume with the same job, or start another run with --job.run-dir"
                )


def schedule_notice(before: JobConfig, job: JobConfig, step: int) -> str | None:
    """What another number of steps does to the learning rate after `step`, where it does something."""
    settings, steps = job.learner, job.job.steps
    then, now = (
        scheduled_rate(
            step + 1,
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            warmup_steps=settings.warmup_steps,
            total_steps=total,
        )
        for total in (before.job.steps, steps)
    )
    if then == now or step >= steps:
        return None
    return (
        f"warning: job.steps is {steps}, and was {before.job.steps}: the {settings.schedule} schedule now ends there, and "
        f"the learning rate goes on with {now:.3g} instead of {then:.3g}"
    )


async def _run(
    prepared: PreparedJob,
    folder: RunFolder,
    display: Display,
    cluster: ClusterInfo,
    engine_class: str,
    started: float,
    interrupts: Interrupts,
) -> Summary | None:
    log_dir = str(folder.logs) if cluster.is_local else None
    recorder = RunRecorder(prepared.job, folder, display, prepared.layout, log_dir, started)
    checkpoints = CheckpointStore(folder.checkpoints, prepared.job.checkpoint.keep)
    checkpoint = checkpoints.newest()
    if checkpoint is None:
        recorder.resume(-1, 0.0)  # nothing that a run before left without a checkpoint counts
    else:
        recorder.resume(checkpoint.state.step, checkpoint.state.elapsed_seconds)
    for source in filter(None, (prepared.train, prepared.held_out)):
        if source.too_long:
            log.warning("prompts_too_long", file=str(source.path), rows=[ordinal + 1 for ordinal in source.too_long])
            recorder.event(too_long_notice(source))
    if cut := cut_notice(prepared.job.rollout):
        recorder.event(cut)
    recorder.fleet = fleet = Fleet(prepared, cluster.custom, log_dir, recorder.event, engine_class)
    controller = Controller(prepared, fleet, folder, recorder)
    endpoint = Endpoint(recorder.status, scaler(fleet), recorder.telemetry.registry)
    interrupts.deliver_to(on_interrupt(controller, recorder, asyncio.current_task()))
    folder.write_controller(await endpoint.start(prepared.job.metrics.host, prepared.job.metrics.port))
    watching = asyncio.create_task(recorder.watch(), name="watch the run")
    running = asyncio.create_task(controller.run(), name="the run")
    try:
        await watched(running, watching, controller.request_stop)
    except Stopped:
        recorder.event(f"stopped on request; {'go on' if checkpoints.newest() else 'begin anew'} with --resume")
    finally:
        recorder.set_phase("ending the pools")
        async with AsyncExitStack() as ending:  # each of these whatever becomes of the others, the last one first
            ending.callback(folder.controller.unlink, missing_ok=True)
            ending.push_async_callback(endpoint.close)
            ending.push_async_callback(end_task, watching)
            ending.push_async_callback(fleet.close)
            ending.push_async_callback(end_task, running)
    return recorder.summary


async def watched(running: asyncio.Task[None], watching: asyncio.Task[None], stop: Callable[[], None]) -> None:
    """Until the run has ended. Where the watching fails, the run is stopped in order first, which saves what is learned.

    Raises:
        Stopped, RunFailed, RayError, OSError: what the run ended with.
        Exception: what the watching failed with.
    """
    await asyncio.wait({watching, running}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done() and (failure := watching.exception()) is not None:
        log.error("watching_failed", exc_info=failure)
        stop()
        await asyncio.wait({running})
        raise failure from running.exception()
    running.result()


async def end_task(task: asyncio.Task[Any]) -> None:
    """Cancel it and wait until it is over; what it failed with was seen, or does not matter any more."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def too_long_notice(source: PromptSource) -> str:
    """How many prompts do not fit the context, and which rows they are."""
    rows = [str(ordinal + 1) for ordinal in source.too_long]
    listed = ", ".join(rows[:LISTED_ROWS]) + (
        ", ...; all of them in logs/controller.jsonl" if len(rows) > LISTED_ROWS else ""
    )
    return f"{source.path.name}: {len(rows)} prompt(s) are longer than the context and left out: row {listed}"


def cut_notice(rollout: RolloutSection) -> str | None:
    """What top_p and top_k do to the importance weights, where the job has them.

    The engine reports log-probabilities after the cut (vLLM's `processed_logprobs`), the learner's are of the whole
    distribution: the weight of a token is off by the share that the cut left, and what is cut off is never seen.
    """
    cuts = {"top_p": rollout.top_p < 1, "top_k": rollout.top_k > 0}
    given = [f"rollout.{name} = {getattr(rollout, name)}" for name, cuts_off in cuts.items() if cuts_off]
    if not given:
        return None
    return (
        f"warning: {' and '.join(given)}: samples come from a cut distribution and the learner has the whole one, so the "
        "importance weights are biased; unbiased are top_p = 1.0 and top_k = 0"
    )


def scaler(fleet: Fleet) -> Callable[[ScaleRequest], Awaitable[None]]:
    """What brings both pools to their numbers, or raises UserError and leaves both as they are."""

    async def scale(request: ScaleRequest) -> None:
        rollout = request.rollout or fleet.rollout.target
        verification = request.verification or fleet.verification.target
        if rollout > fleet.rollout.target or verification > fleet.verification.target:
            await fleet.check_room(rollout, verification)
        asked = [(fleet.rollout, request.rollout), (fleet.verification, request.verification)]
        changes = [(pool, target) for pool, target in asked if target is not None]
        # What shrinks goes first: a pool that grows looks for room beside the other as it is then.
        for pool, target in sorted(changes, key=lambda change: change[1] - change[0].target):
            await pool.scale(target)

    return scale


def on_interrupt(controller: Controller, recorder: RunRecorder, main: asyncio.Task[Any] | None) -> Callable[[], None]:
    """What Ctrl-C does. Once: stop in order. Twice: at once."""
    seen = 0

    def interrupt() -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            what = "with a checkpoint" if recorder.steps_done else "nothing is saved before the first step is done"
            controller.request_stop()  # first: where the display's output has gone with the terminal, to tell may fail
            recorder.event(f"stopping after what is under way; {what}; once more to stop at once")
        elif main is not None:
            main.cancel()

    return interrupt
