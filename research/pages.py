"""Pages of docs/ whose figures a script writes, between marks.

The place `tables` of a page stands between <!-- tables: begin --> and <!-- tables: end -->.
"""

from cores.errors import UserError

BEGIN, END = "<!-- {}: begin -->", "<!-- {}: end -->"


def fill(page: str, places: dict[str, str], name: str) -> str:
    """`page` with each place's text between its marks; UserError naming the page without them."""
    for place, text in places.items():
        begin, end = BEGIN.format(place), END.format(place)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise UserError(f"{name}: the marks {begin} and {end} must be in it, in this order.")
        page = f"{before}{begin}\n{text.rstrip()}\n{end}{after}"
    return page
