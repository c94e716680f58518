"""What monitoring refuses, drawn as one tree.

MonitoringError       exit code 2 on the command line
├── LakeRefused       a folder or file of the lake that can't be read or written; names it
├── OutcomesRefused   a file of outcomes with a row that is none; names the row and the field
├── PlanRefused       an experiment's plan that makes no sense; names the field
├── NoExperiment      a model without an experiment where one is needed, or with one where none may be
├── Overtaken         another published first; nothing was changed
├── Unreleased        the release store refused a generation, or could not be asked
├── NotReproduced     exit code 1: a decision that does not follow from what it says it was made from
├── TooLittleData     a window with too few rows to say anything
├── RulesRefused      a file of alert rules that is not in order; names the rule and the field
├── ServerSilent      a server whose metrics could not be read; names it
├── Busy              another run holds what this one needs
├── OutOfBalance      exit code 1: served is not logged + dropped + lost, or a row is there twice
├── DriftFound        exit code 1: the verdict is drift
└── PerformanceDropped   exit code 1: an arm that serves is worse than its level
"""

from __future__ import annotations


class MonitoringError(Exception):
    exit_code = 2


class LakeRefused(MonitoringError):
    pass


class OutcomesRefused(MonitoringError):
    pass


class PlanRefused(MonitoringError):
    pass


class NoExperiment(MonitoringError):
    pass


class Overtaken(MonitoringError):
    pass


class Unreleased(MonitoringError):
    pass


class NotReproduced(MonitoringError):
    exit_code = 1


class TooLittleData(MonitoringError):
    pass


class RulesRefused(MonitoringError):
    pass


class ServerSilent(MonitoringError):
    pass


class Busy(MonitoringError):
    pass


class OutOfBalance(MonitoringError):
    exit_code = 1


class DriftFound(MonitoringError):
    exit_code = 1


class PerformanceDropped(MonitoringError):
    exit_code = 1
