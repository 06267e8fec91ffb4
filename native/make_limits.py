"""Writes limits.h from src/eyespot/limits.py, so that C++ obeys the same numbers. Knows no use of them.

Usage: python make_limits.py limits.py limits.h
"""

import runpy
import sys

source, target = sys.argv[1:]
lines = ["// limits.h: made from src/eyespot/limits.py by native/make_limits.py.", "#pragma once", "#include <cstdint>"]
lines += ["namespace eyespot::limits {"]
for name, value in runpy.run_path(source).items():
    if name.isupper() and isinstance(value, int):
        lines.append(f"constexpr int64_t {name} = {value};")
lines.append("}  // namespace eyespot::limits")
with open(target, "w", encoding="utf-8") as file:
    file.write("\n".join(lines) + "\n")
