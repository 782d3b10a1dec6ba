"""Pictures of the report, notebook by notebook, with what one sees and what good looks like."""

from __future__ import annotations

from pathlib import Path

from mslib.show.report import Panel, compressed

#: Bytes of a figure (base64 adds a third).
FIGURE_BYTES = 50_000


def figure_panel(run_dir: str | Path, name: str, title: str, see: str, good: str, alt: str,
                 caption: str = "") -> list[Panel]:
    """A figure of the run with what one sees and what good looks like; no panel where the figure was not made."""
    path = Path(run_dir) / "figures" / f"{name}.png"
    return [Panel(title, see, good, compressed(path, FIGURE_BYTES), alt, caption)] if path.exists() else []


def attribution_panels(run_dir: str | Path, backbones: list[str]) -> list[Panel]:
    """Figures of notebook 04."""
    outlined = "Colour inside the outlines and, of planted marks, in FLAIR only."
    return [
        *figure_panel(run_dir, "attribution_scores_planted", "Methods judged against planted truth",
                      "Simulated controls with marks of which one sequence decides. One row per method.",
                      "Light cells; randomised near the bottom of its scale, everything else above chance (last row).",
                      "Table of scores of sixteen attribution methods against planted truth"),
        *figure_panel(run_dir, "attribution_planted", "Sixteen maps of a planted net",
                      "Each block: T1w, T2w, FLAIR. Red speaks for the class, blue against it.", outlined,
                      "Attribution maps of sixteen methods over a simulated slice with planted marks"),
        *figure_panel(run_dir, "gradcam_msfi_by_layer", "Grad-CAM by layer against planted truth",
                      "MSFI over depth, one row per planted net.", "A curve well above the dotted chance.",
                      "Curves of MSFI of Grad-CAM and Guided Grad-CAM over the layers"),
        *figure_panel(run_dir, "shortcut", "Which methods expose a shortcut",
                      "Share of the positive attribution on a mark outside the head that the net goes by.",
                      "Far to the right of the dotted line.", "Share of attribution on the shortcut per method"),
        *figure_panel(run_dir, "modality_importance", "How much each sequence matters",
                 "Exact Shapley values; bars of a panel add up to what the net gains from all sequences.",
                 "Fills that agree.", "Bars of the importance of every sequence per net and fill"),
        *figure_panel(run_dir, "attribution_patient", "Sixteen maps of a patient",
                      "Each block: T1w, T2w, FLAIR. Outlines: lesions, where they are known.", outlined,
                      "Attribution maps of sixteen methods over one slice of a patient"),
        *(panel for backbone in backbones for panel in figure_panel(
            run_dir, f"attribution_scores_patients_{backbone}", f"Methods judged on patients, {backbone.upper()}",
            "Lesions in the place of planted marks; a low score may be the net's and not the map's.",
            "Delta-AUPC above 0 under every fill, randomised near 0.",
            f"Table of scores of sixteen methods on patients by {backbone.upper()}"))]


def relevance_panels(run_dir: str | Path) -> list[Panel]:
    """Figures of notebook 05."""
    return [
        *figure_panel(run_dir, "relevance_planted", "Shares against planted truth",
                      "Nets of which one sequence decides: share of that one, of one that agrees in 70 %, of an idle "
                      "one, by rule.", "The deciding sequence far above the dotted third.",
                      "Bars of relevance shares by role of the sequence and rule"),
        *figure_panel(run_dir, "relevance_patient", "Relevance of one slice",
                      "Each block: T1w, T2w, FLAIR by one net and rule. Red speaks for the named class, blue against.",
                      "Colour on the outlined lesions, or on what else the disease changes.",
                      "Relevance maps of every net and rule over one slice of a patient"),
        *figure_panel(run_dir, "relevance_shares", "Share of every sequence",
                      "By net, class and whether the slice was named rightly.", "Shares alike within a class.",
                      "Bars of relevance shares by class, right and wrong apart"),
        *figure_panel(run_dir, "relevance_subjects", "Subject by subject",
                      "One dot per subject and sequence; filled: most slices named rightly.",
                      "Dots that keep together.",
                      "Dots of relevance shares per subject"),
        *figure_panel(run_dir, "relevance_flow", "Relevance on its way down",
                      "What reaches each layer; biases keep or add the rest.", "A blue curve near 1.",
                      "Curves of relevance over the layers"),
        *figure_panel(run_dir, "relevance_rules", "Rules side by side, and exact Shapley values",
                      "The same slices by every rule.", "One order of the sequences whatever the rule.",
                      "Bars of relevance shares by rule and of Shapley values"),
        *figure_panel(run_dir, "relevance_effects", "What shares are related to",
                      "Effects of a mixed model; filled: they pass the false discovery rate.",
                      "Narrow intervals; few of them are needed to be off zero.",
                      "Effects with intervals per net and sequence")]
