"""What training refuses, drawn as one tree.

TrainingError           exit code 2 on the command line
├── DataRefused         a file or column that can't be trained on; names it
├── RecipeRefused       a recipe with an unknown key or an impossible value; names it
├── NotRegistered       no such model, version or alias
├── StoreRefused        what a feature store answered can't be right, or it can't be reached
└── GateFailed          exit code 1: trained, measured, and not good enough to register
"""

from __future__ import annotations


class TrainingError(Exception):
    exit_code = 2


class DataRefused(TrainingError):
    pass


class RecipeRefused(TrainingError):
    pass


class NotRegistered(TrainingError):
    pass


class StoreRefused(TrainingError):
    pass


class GateFailed(TrainingError):
    exit_code = 1
