"""How the pages of reports look: one style sheet, no files beside them, no scripts."""

STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2em auto;max-width:1000px;color:#222}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.15em .6em;white-space:nowrap;border-bottom:1px solid #ddd;text-align:right}"
    "th{white-space:normal}td:first-child,th:first-child{text-align:left}.bad{color:#b00;font-weight:bold}"
)
COLORS = ("#1f77b4", "#d95f02", "#1b7f3b", "#9467bd", "#8c564b")
