"""The implementations of the ops. Importing this registers them with torch; none is loaded before it runs."""

from .. import ops as ops
from .selection import register

register()
