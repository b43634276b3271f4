"""Parts of a picture along one axis, and where their results go."""

from dataclasses import dataclass

from esrjax.pictures.upscale.whole import Floats


@dataclass(frozen=True)
class Span:
    """The pixels `[start, stop)`, of which the result is taken for `[first, last)`; LR pixels."""

    start: int
    stop: int
    first: int
    last: int


def paste(sr: Floats, part: Floats, rows: Span, columns: Span, scale: int) -> None:
    """Put what is taken of `part`, the result for these spans, into `sr`."""

    def stretch(span: Span, origin: int) -> slice:
        return slice((span.first - origin) * scale, (span.last - origin) * scale)

    sr[stretch(rows, 0), stretch(columns, 0)] = part[
        stretch(rows, rows.start), stretch(columns, columns.start)
    ]
