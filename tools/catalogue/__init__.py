"""Catalogues as files: `python -m tools.catalogue import FILE` and `python -m tools.catalogue export FILE`.

A file has one JSON object a line, of the API's own messages:

    {"venue": {"venueId": "regal", "name": "Regal", "timeZone": "Asia/Kolkata"}}
    {"auditorium": {"auditoriumId": "screen-1", "venueId": "regal", "name": "Screen 1", "rows": […]}}
    {"event": {"name": "Monsoon Nights", "auditoriumId": "screen-1", …}}

The ids of venues and auditoriums are names within the file: any text, also the ids that an
export has written. Lines are imported in their order, so what is referred to comes first.
"""
