"""Tables for the terminal."""


def table(head: tuple, rows: list[tuple], alignment: str = '') -> str:
    """Columns of strings under their heads; alignment has '<' or '>' for each, left where it is short."""
    alignment = alignment.ljust(len(head), '<')
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    columns = list(zip(alignment, widths, strict=True))
    lines = ['  '.join(f'{cell:{side}{width}}' for cell, (side, width) in zip(row, columns, strict=True)).rstrip()
             for row in (head, *rows)]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])
