"""What the page refuses outside of an answer, as its sentence."""

from collections.abc import Callable
from typing import Any

import gradio as gr


def shown_if_refused(make: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What `make` gives; what it refuses is shown on the page, and is no fault of the page's for the terminal to show."""
    try:
        return make(*given, **named)
    except (ValueError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error
