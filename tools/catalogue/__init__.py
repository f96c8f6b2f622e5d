"""Import and export of catalogues: `python -m tools.catalogue import FILE` and `… export FILE`.

A file has one JSON object per line, with messages of the API:

    {"venue": {"venueId": "regal", "name": "Regal", "timeZone": "Asia/Kolkata"}}
    {"auditorium": {"auditoriumId": "screen-1", "venueId": "regal", "name": "Screen 1", "rows": […]}}
    {"production": {"productionId": "monsoon", "title": "Monsoon Nights"}}
    {"event": {"name": "Monsoon Nights", "auditoriumId": "screen-1", "productionId": "monsoon", …}}

Ids of venues, auditoriums and productions are names within the file: any text, including the ids of an export.
Lines are imported in order; a line may only refer to earlier lines.
"""
