"""Cost of one simulated subject at 1 mm: CPU seconds on one core, and peak memory.

Run: ``python benchmarks/simulate.py [subjects]``. The template is made once per study and is listed apart.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import SimpleITK as sitk

from mslib.cohort import phantom, write_template


def main(subjects: int = 6) -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    people = phantom.draw_participants({"control": subjects, "RRMS": subjects, "SPMS": subjects}, 1)
    print(f"{'step':<28}{'median s':>10}{'worst s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "template.npz"
        start = time.process_time()
        maps = phantom.template(1.0)
        write_template(cache, 1.0)
        print(f"{'template (once)':<28}{time.process_time() - start:>10.2f}")
        for name, work in (("render, 1 mm", lambda p: phantom.render(p, 1.0, maps)),
                           ("subject written, 1 mm", lambda p: phantom.simulate_subject(p, folder, 1.0, cache))):
            seconds = []
            for person in people[:subjects]:
                start = time.process_time()
                work(person)
                seconds.append(time.process_time() - start)
            print(f"{name:<28}{sorted(seconds)[len(seconds) // 2]:>10.2f}{max(seconds):>10.2f}")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, {subjects} subjects")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
