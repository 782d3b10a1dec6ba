"""Snakemake's scheduler as the Snakefile mends it."""

import threading

import pytest
import snakemake
from repository import ROOT
from snakemake.scheduling.job_scheduler import JobScheduler

from mslib.study.scheduling import mend


def scheduler(mended):
    """A scheduler that has nothing but what alarms and resources need."""
    kind = type("Scheduler", (JobScheduler,), {})
    if mended:
        mend(kind)
    made = object.__new__(kind)
    made._open_jobs = threading.Semaphore(0)
    return made


def alarms():
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


@pytest.mark.parametrize("mended", [False, True])
def test_alarms_do_not_pile_up(mended):
    """As it is, every wake-up while jobs wait leaves an alarm more; mended there is one."""
    one = scheduler(mended)
    before = alarms()
    for _ in range(5):
        one._schedule_reevalutation(30)
    set_now = [alarm for alarm in alarms() if alarm not in before]
    for alarm in set_now:
        alarm.cancel()
        alarm.join()
    assert len(set_now) == (1 if mended else 5)


def test_an_alarm_that_has_rung_can_be_set_again():
    one = scheduler(mended=True)
    for _ in range(3):
        one._schedule_reevalutation(0.01)
        assert one._open_jobs.acquire(timeout=10)
    assert not one._open_jobs.acquire(timeout=0.1)


def test_a_job_chosen_alone_takes_its_cores(monkeypatch):
    monkeypatch.setattr(JobScheduler, "job_selector", lambda self, jobs: jobs)
    one = scheduler(mended=True)
    one._lock, taken = threading.Lock(), []
    one.update_available_resources = taken.extend
    assert one.job_selector(["a", "b"]) == ["a", "b"] and taken == []
    assert one.job_selector(["a"]) == ["a"] and taken == ["a"]


def test_the_study_mends_the_version_that_is_installed():
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    assert f'if snakemake.__version__ == "{snakemake.__version__}":\n    mend(JobScheduler)' in text
