"""Region perception, both ways: the box is written in the question, or drawn on the picture.

Mini-InternVL's two forms. Knows boxes; opens the picture it draws on.
"""

from __future__ import annotations

from collections.abc import Iterator

from eyespot import boxes, images
from eyespot.errors import EyespotError
from eyespot.train.data.record import IMAGE, BadRecord, Record, dialogue
from eyespot.train.tasks.annotation import Annotated

COLOUR = (255, 0, 0)


def written(annotated: Annotated) -> Iterator[Record]:
    """A record for each box, `What object is in this location<box>[[...]]</box>`; the answer repeats the box."""
    for thing in annotated.things:
        at = boxes.write([thing.box])
        question = f"{IMAGE}\nWhat object is in this location{at}"
        turns = dialogue(question, boxes.ref(thing.name) + at)
        yield Record(turns, (annotated.picture,), (annotated.size,), place=annotated.place)


def drawn(annotated: Annotated) -> Iterator[Record]:
    """A record for each box, drawn in red on a copy of the picture; the answer is the name. BadRecord when the picture
    cannot be decoded."""
    from PIL import ImageDraw

    try:
        picture = images.load(annotated.picture).image
    except EyespotError as error:
        raise BadRecord(annotated.place, [str(error)]) from None
    thick = max(2, min(picture.size) // 150)
    for thing in annotated.things:
        marked = picture.copy()
        frame = boxes.to_pixels(thing.box, (picture.width - 1, picture.height - 1))
        ImageDraw.Draw(marked).rectangle(frame, outline=COLOUR, width=thick)
        turns = dialogue(f"{IMAGE}\nWhat object is in the red box?", thing.name)
        yield Record(turns, (marked,), (annotated.size,), place=annotated.place)
