"""What the cffi extension exports; its functions are declared in native/include/casckpt.h."""

from typing import Any

ffi: Any
lib: Any
