"""A launch as data: what a launcher hands to the backend, which knows where it runs."""

from typing import Any, NamedTuple


class KernelCall(NamedTuple):
    """`function` is a kernel (`triton.jit`); `arguments` are its own and the compiler's options, by name."""

    function: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    def __call__(self) -> Any:
        """Launches on the current GPU and stream, or in the interpreter; the compiled kernel."""
        return self.function[self.grid](**self.arguments)

    def own(self) -> dict[str, Any]:
        """The kernel's arguments in its order, constants too."""
        return {name: self.arguments[name] for name in self.function.arg_names}


def kernel_call(function: Any, grid: tuple[int, ...], **arguments: Any) -> KernelCall:
    return KernelCall(function, grid, arguments)
