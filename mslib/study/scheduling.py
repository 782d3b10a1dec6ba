"""Two mends of the scheduler of Snakemake 9.15, which the lock pins."""

from __future__ import annotations

from threading import Timer


def mend(scheduler: type) -> None:
    """Let a scheduler keep count of what jobs take, and sleep while they run.

    Snakemake 9.15 does not take the cores and memory of a job that it chooses alone, but gives them back when it ends
    (its issue 3815), so that more and more jobs would run side by side. Here they are taken. Newer ones that do so
    themselves cannot be installed beside nilearn (pyproject.toml).

    Whenever it wakes up while jobs wait, it sets another alarm of a second, so that every job that ends leaves one more
    that never stops: after 100 jobs it solves its knapsack a hundred times a second, on a core that the jobs need. Here
    one alarm is set at a time.

    Parameters
    ----------
    scheduler : type
        ``snakemake.scheduling.job_scheduler.JobScheduler`` or a class of its own below it; changed in place.
    """
    choose = scheduler.job_selector

    def job_selector(self, jobs):
        chosen = choose(self, jobs)
        if len(jobs) == 1:
            with self._lock:
                self.update_available_resources(chosen)
        return chosen

    def one_alarm(self, delay):
        def ring():
            self._alarm = False
            self._open_jobs.release()

        if not getattr(self, "_alarm", False):
            self._alarm = True
            Timer(delay, ring).start()

    scheduler.job_selector = job_selector
    scheduler._schedule_reevalutation = one_alarm
