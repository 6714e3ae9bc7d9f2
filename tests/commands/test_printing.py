"""What commands print."""

from genray.commands import printing

REPORT = {
    "directory": "runs/first",
    "probes": {"trained": {"knn": 0.876, "linear": 0.9}, "raw_pixels": {"knn": 0.4, "linear": 0.25}},
    "steps": 400,
    "images_per_s": 1234.5,
    "advice": "generators and learners are balanced: 2.0 generators would do, there are 2",
    "seconds_to_first_step": {"Ray started": 9.0, "first step": 21.4, "total": 30.4},
    "seconds_total": 250.4,
    "mlflow": "http://mlflow:5000",
}


def test_a_finished_run_is_told_with_what_to_make_of_its_speed() -> None:
    assert printing.report(REPORT) == [
        "unseen images        kNN   linear",
        "trained            87.6%    90.0%",
        "raw pixels         40.0%    25.0%",
        "400 steps in 250 s, 30 s of them before the first step; 1,234 images/s while training",
        "generators and learners are balanced: 2.0 generators would do, there are 2",
        "report  runs/first/report.json",
        "encoder runs/first/export",
        "MLflow  http://mlflow:5000",
    ]
    several = {"trained": {"svm": 0.5, "svm.11-point": 0.525}}
    assert printing.report({**REPORT, "probes": several})[:2] == [
        "unseen images        svm   svm.11-point",
        "trained            50.0%          52.5%",
    ]


def test_what_was_not_measured_is_not_told() -> None:
    silent = {**REPORT, "probes": {}, "advice": None, "seconds_to_first_step": {}, "mlflow": None}
    assert printing.report(silent) == [
        "400 steps in 250 s; 1,234 images/s while training",
        "report  runs/first/report.json",
        "encoder runs/first/export",
    ]
