"""What a run's files tell: the doctor's findings and the report. No model is needed."""

from cores.report.doctor import Finding, Record, Watch, examine, json_lines, read_run
from cores.report.page import write_report
from cores.report.rules import RULES
