"""How the report of a run and the page of `ancestral serve` find each other."""

PAGE = "http://127.0.0.1:8000/"  # where `ancestral serve RUN` is found, if it is told nothing else
REPORT = "report.html"  # in a run's folder: what `ancestral explain RUN --out RUN/report.html` writes
