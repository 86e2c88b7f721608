"""The `headrace` command.

Headrace trains language models by reinforcement learning from checks that can be run: generators, verifiers and the
learner work side by side as pools on a Ray cluster. `headrace run job.toml` trains; the other commands look at a run,
steer it, and take its weights out.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated

import msgspec
import psutil
import structlog
import typer
from ray.exceptions import RayError
from rich.console import Console

from headrace.cluster.display import make_display
from headrace.cluster.doctor import examine, render
from headrace.cluster.dtypes import settle_dtypes
from headrace.cluster.endpoint import ControllerAddress, ScaleRequest, ask
from headrace.cluster.errors import RunFailed, original
from headrace.cluster.job_file import dump_job, load_job, located
from headrace.cluster.run_folder import RunFolder
from headrace.cluster.run_records import MAX_MEMBERS
from headrace.cluster.standard_output import run_console
from headrace.cluster.status_panel import render_status
from headrace.verifiers.errors import UserError, WrongValue, cause_line

HELP = (__doc__ or "").split("\n\n", 1)[-1]
STOPPED = 130  # as shells have it for a program that Ctrl-C has ended
EXIT_STATUSES = (
    "Exit status: 0 done, 1 the run failed, 2 wrong input (one line on stderr says what), 130 stopped by Ctrl-C or SIGTERM, "
    "in order or at once."
)

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=HELP, epilog=EXIT_STATUSES
)
log = structlog.get_logger()

CORES = len(psutil.Process().cpu_affinity() or [0])
RunArgument = Annotated[Path, typer.Argument(help="The run's folder, such as runs/demo.")]


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run(
    context: typer.Context,
    job: Annotated[Path, typer.Argument(help="The job file (TOML).")],
    resume: Annotated[bool, typer.Option(help="Take up the run in the job's run folder.")] = False,
    print_config: Annotated[bool, typer.Option(help="Print the job with every value, and stop.")] = False,
) -> None:
    """Train. Any value of the job can be given here as well: --learner.learning-rate 1e-5."""
    config = load_job(job, context.args)
    if print_config:
        sys.stdout.write(dump_job(settle_dtypes(config)))
        return
    display = make_display(run_console())
    try:
        try:
            display.event("reading the data")
            # These two here, and not above: what they load takes seconds, and few commands need it.
            from headrace.cluster.inputs import read_inputs

            RunFolder.of(config).check(resume)
            inputs = None if resume else read_inputs(config)  # a job that resumes is compared with the run's first
            display.event("loading torch and transformers")
            from headrace.cluster.trainer import run_job
        except BaseException:
            display.close()
            raise

        summary = run_job(config, inputs, resume=resume, display=display, started=psutil.Process().create_time())
    except WrongValue as error:
        raise located(original(error), job, context.args) from error
    except KeyboardInterrupt as error:  # for which typer has an exit status, and no word
        raise asyncio.CancelledError from error
    if summary is None:  # stopped in order: what was asked for is not done, so `run && next` must not go on
        raise typer.Exit(STOPPED)


@app.command()
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show a live run: members, states, weight versions, rates, queue."""
    answer = asyncio.run(ask(RunFolder(run).read_controller(ControllerAddress), "GET", "/status"))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    else:
        Console().print(render_status(answer, time.time()))


@app.command()
def scale(
    run: RunArgument,
    rollout: Annotated[int | None, typer.Option(min=1, max=MAX_MEMBERS, help="Generators.")] = None,
    verification: Annotated[int | None, typer.Option(min=1, max=MAX_MEMBERS, help="Verification workers.")] = None,
) -> None:
    """Change the number of members of a live run's pools; what is too many finishes its work first."""
    if rollout is None and verification is None:
        raise UserError("scale: give --rollout N, --verification N, or both")
    request = msgspec.json.encode(ScaleRequest(rollout, verification))
    answer = asyncio.run(ask(RunFolder(run).read_controller(ControllerAddress), "POST", "/scale", request))
    Console().print(render_status(answer, time.time()))


@app.command()
def export(
    run: RunArgument,
    output: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.")],
) -> None:
    """Write a run's newest checkpoint as a Hugging Face folder, for transformers and vLLM."""
    from headrace.cluster.export import export_run

    step = export_run(RunFolder(run), output)
    Console().print(f"wrote the weights of step {step} to {output}", markup=False, highlight=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def verify(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A verifier's name, or file.py:function.")],
    rows: Annotated[Path, typer.Argument(metavar="INPUT", help="JSONL or Parquet; each row has a `completion`.")],
    output: Annotated[Path | None, typer.Option(help="Verdicts as JSONL, in the rows' order.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="One of the verifier's options; also as --key VALUE.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a verifier of its own.")] = CORES,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for one call of a worker.")] = 300.0,
) -> None:
    """Score the rows of a file, without a cluster. Exit status 1: some rows' check did not run."""
    # Here, and not above: it needs pyarrow, a fifth of what all commands together take to load.
    from headrace.cluster.offline_verification import parse_options, verify_file

    try:
        options = parse_options(option or [], context.args)
        all_judged = verify_file(name, rows, output, options, workers, timeout)
    except KeyboardInterrupt as error:  # for which typer has an exit status, and no word
        raise asyncio.CancelledError from error
    if not all_judged:
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """Show what this machine has, and what it lacks. Exit status 1: something is missing that runs, or the sandbox, need."""
    findings = examine()
    Console().print(render(findings))
    if any(finding.is_fault for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"headrace: {original(error)}\n")
        sys.exit(2)
    except (RunFailed, RayError, OSError) as error:  # OSError: a full disk, or a time that was out
        sys.stderr.write(f"headrace: the run failed: {type(error).__name__}: {cause_line(error)}\n")
        _log_failure()
        sys.exit(1)
    except asyncio.CancelledError:
        sys.stderr.write("headrace: stopped\n")
        sys.exit(STOPPED)


def _log_failure() -> None:
    """The failure that is being handled, with its trace."""
    try:
        log.error("run_failed", exc_info=True)
    except OSError as error:
        sys.stderr.write(f"headrace: and its trace cannot be written to the log: {error.strerror}\n")


if __name__ == "__main__":
    main()
