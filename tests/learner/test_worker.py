"""A rank's actor, without Ray and without a model: what it counts."""

from pathlib import Path

from headrace.learner.rank import StepMetrics
from headrace.learner.settings import LearnerSettings
from headrace.learner.worker import LearnerWorker, WorkerSettings


def test_a_rank_exports_its_own_tokens_and_not_those_of_all_ranks(tmp_path: Path):
    learner = LearnerSettings(model="none", total_steps=1)
    settings = WorkerSettings("run", "127.0.0.1", learner, 2, "gloo", 1.0, str(tmp_path))
    worker = LearnerWorker(settings, rank=1)
    values = dict.fromkeys(StepMetrics.__struct_fields__, 1)
    metrics = StepMetrics(**{**values, "learner_tokens": 70, "rank_tokens": 30, "phases": {"forward": 0.5}})
    worker._count(metrics)
    worker._count(metrics)
    worker.close()
    labels = {"run": "run", "member": "learner-1"}
    assert worker._metrics.registry.get_sample_value("headrace_learner_tokens_total", labels) == 60
