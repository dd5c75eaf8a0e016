"""`opt`, `bisect`, and the lists: what they print, and that reproducers run again."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from elidir.ir import Add, Builder, Mul, Op, Value
from elidir.passes import Context, Invariant, Module, Pass, PassResult, passes, register
from elidir.passes import registry as entries
from tests.cli.conftest import Elidir

IR = """// run: cse
module @m stage=raised {
  sym T in [1, 64]
  func @forward(%x: f32[T, 8]) {
    %a = add %x, %x : f32[T, 8]
    %b = add %x, %x : f32[T, 8]
    %c = add %a, 1.0 : f32[T, 8]
    %d = mul %c, %b : f32[T, 8]
    return %d
  }
}
"""
