"""The ANTs side of `registration.py`: N4 and rigid registration of one head, in a Python that has `ants`.

    python ants_rigid.py request.json

The request names ``images`` (sequence to file, the first is the fixed one) and ``out`` (a folder). There it leaves
the transforms ``<sequence>.mat``, the corrected images ``<sequence>.nii.gz`` and ``seconds.json``: wall and CPU
seconds of N4 and of the registrations, reading and writing left out.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import ants


def clocks():
    return time.perf_counter(), time.process_time()


def main(request):
    request = json.loads(Path(request).read_text())
    out = Path(request["out"])
    raw = {name: ants.image_read(file) for name, file in request["images"].items()}
    fixed, *others = raw
    times = [clocks()]
    corrected = {name: ants.n4_bias_field_correction(image) for name, image in raw.items()}
    times.append(clocks())
    found = {name: ants.registration(corrected[fixed], corrected[name], type_of_transform="Rigid", random_seed=1)
             for name in others}
    times.append(clocks())
    for name in others:
        shutil.copy(found[name]["fwdtransforms"][0], out / f"{name}.mat")
    for name, image in corrected.items():
        ants.image_write(image, str(out / f"{name}.nii.gz"))
    seconds = {f"{step}_{clock}": later - earlier for step, before, after in zip(("n4", "rigid"), times, times[1:])
               for clock, earlier, later in zip(("wall", "cpu"), before, after)}
    (out / "seconds.json").write_text(json.dumps(seconds | {"version": ants.__version__}))


if __name__ == "__main__":
    main(sys.argv[1])
