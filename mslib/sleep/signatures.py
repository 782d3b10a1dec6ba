"""What each stage looks like in EEG, EOG and EMG, and what age, sex and a drug change: the simulated truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Modalities in the order of every array's last axis.
MODALITIES = ("EEG", "EOG", "EMG")
#: Their channels in Sleep-EDF telemetry; the simulator uses the same names.
CHANNELS = {"EEG": "EEG Fpz-Cz", "EOG": "EOG horizontal", "EMG": "EMG submental"}
#: Hz; spindles 11 to 16 Hz and slow waves .5 to 2 Hz as in the AASM manual (Berry et al. 2012).
BANDS = {"delta": (0.5, 2.0), "theta": (4.0, 7.0), "alpha": (8.0, 12.0), "sigma": (11.0, 16.0), "beta": (16.0, 30.0)}

#: Root mean square in microvolt of every rhythm of the EEG in W (eyes closed), N1, N2, N3, REM. Slow waves are scored
#: from 75 microvolt peak to peak on: 27 microvolt of a sine.
EEG_RMS = {"broadband": (7.0, 7.0, 7.0, 7.0, 7.0),
           "delta": (6.0, 8.5, 15.0, 36.0, 8.5),
           "theta": (5.5, 8.5, 7.5, 7.5, 8.5),
           "alpha": (10.0, 4.0, 3.0, 2.5, 4.0),
           "sigma": (1.5, 1.5, 2.5, 2.5, 1.5),
           "beta": (4.0, 3.2, 2.4, 1.8, 3.2)}
#: With open eyes alpha gives way (W only).
OPEN_EYES_ALPHA = 0.35
#: Events per minute in W, N1, N2, N3, REM. Blinks and saccades of W occur with open eyes only.
RATES = {"spindle": (0.0, 0.1, 4.0, 1.2, 0.0),
         "k_complex": (0.0, 0.0, 2.0, 0.5, 0.0),
         "sawtooth": (0.0, 0.0, 0.0, 0.0, 0.6),
         "blink": (12.0, 0.3, 0.0, 0.0, 0.0),
         "eye_movement": (6.0, 0.4, 0.0, 0.0, 18.0),
         "twitch": (2.0, 0.3, 0.1, 0.1, 2.0),
         "artefact": (0.5, 0.15, 0.06, 0.03, 0.1)}
#: Median size of every event, microvolt from baseline to peak.
SIZES = {"spindle": 22.0, "k_complex": 90.0, "sawtooth": 24.0, "blink": 110.0, "eye_movement": 90.0, "twitch": 20.0,
         "artefact": 250.0}
#: Slow (.2 to .5 Hz) rolling eye movements, root mean square in microvolt.
SLOW_EYE_RMS = (16.0, 30.0, 9.0, 6.0, 8.0)
EYE_NOISE_RMS = 6.0
#: Tonic chin EMG, root mean square in microvolt: falls with depth, lowest in REM (atonia).
EMG_RMS = (13.0, 8.5, 6.5, 5.5, 3.9)
#: Share of REM without any rapid eye movement (tonic REM) and of W with open eyes.
TONIC_REM, OPEN_EYES = 0.05, 0.4
#: Standard deviation of the natural logarithm of a rhythm's strength within a night, by modality.
WANDERING = {"EEG": 0.25, "EOG": 0.45, "EMG": 0.45}


@dataclass(frozen=True)
class Effects:
    """Simulated effects: change of the natural logarithm of an amplitude or rate (0.1 is about 10 %).

    Signs follow the literature, sizes are ours: less slow-wave and spindle amplitude with age and more of both in
    women (Carrier et al. 2001); more spindle and beta activity and less slow-wave amplitude under a benzodiazepine
    (Borbély et al. 1985), and fewer eye movements in REM. ``..._per_decade``: amplitude of slow waves and spindles
    (EEG) and of all eye movements (EOG), per ten years of age; ``..._women``: amplitude, women less men; ``..._drug``:
    temazepam less placebo; ``..._sd``: standard deviation between subjects, and between the nights of one, of every
    one of these logarithms.
    """

    delta_per_decade: float = -0.10
    spindle_per_decade: float = -0.06
    eye_movement_per_decade: float = -0.10
    delta_women: float = 0.15
    spindle_women: float = 0.10
    spindle_rate_drug: float = 0.40
    sigma_drug: float = 0.20
    beta_drug: float = 0.25
    delta_drug: float = -0.15
    eye_movement_rate_drug: float = -0.25
    subject_sd: float = 0.15
    night_sd: float = 0.05

    def log_gains(self, age: float, sex: str, drug: str, subject_rng: np.random.Generator,
                  night_rng: np.random.Generator) -> dict[str, float]:
        """Logarithmic change of every component of one night; an age of 40 years changes nothing.

        ``delta, sigma, beta, theta, alpha, spindle`` (amplitude), ``spindle_rate``, ``eye`` (amplitude of all eye
        movements), ``eye_rate`` (of REM).
        """
        decades, woman, treated = (age - 40) / 10, sex == "F", drug == "temazepam"
        change = {"delta": self.delta_per_decade * decades + self.delta_women * woman + self.delta_drug * treated,
                  "theta": 0.0, "alpha": 0.0, "sigma": self.sigma_drug * treated, "beta": self.beta_drug * treated,
                  "spindle": self.spindle_per_decade * decades + self.spindle_women * woman,
                  "spindle_rate": self.spindle_rate_drug * treated,
                  "eye": self.eye_movement_per_decade * decades,
                  "eye_rate": self.eye_movement_rate_drug * treated}
        return {name: float(value + subject_rng.normal(0, self.subject_sd) + night_rng.normal(0, self.night_sd))
                for name, value in change.items()}
