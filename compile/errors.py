"""What compile refuses, drawn as one tree.

CompileError          exit code 2 on the command line
├── ModelRefused      a model kind that can't be compiled exactly; says which part of it
├── ParityFailed      exit code 1: a backend did not answer as the native library does; no bundle was made
├── CompilerFailed    the C compiler is missing, failed or took too long; has its words
├── BundleRefused     a bundle that is damaged, altered, unsigned, of another format or unfit for this machine; names the file
└── KeyRefused        a key, or what this host keeps of its trust, that is absent or unfit; names the file
"""

from __future__ import annotations


class CompileError(Exception):
    exit_code = 2


class ModelRefused(CompileError):
    pass


class ParityFailed(CompileError):
    exit_code = 1


class CompilerFailed(CompileError):
    pass


class BundleRefused(CompileError):
    pass


class KeyRefused(CompileError):
    pass
