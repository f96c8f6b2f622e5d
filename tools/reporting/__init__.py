"""How reports are drawn: charts as shapes, which become SVG or a picture, and pages without scripts.

What is in a report is its owner's: chaos/report, tools/boxoffice.
"""
