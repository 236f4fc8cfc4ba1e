"""Bar charts as plain SVG text, so that equal results give equal files."""

import html

COLOURS = {"pujax": "#2a6f97", "PyTorch": "#e07a5f"}  # by how a bar's name starts
Group = tuple[str, dict[str, float]]  # label of the group; value of every bar by its name


def bar_chart(title: str, groups: list[Group], text: str = "{:,.0f}") -> str:
    """Return SVG: horizontal bars, each group to a scale of its own, with the values written by the format `text`."""
    row, left = 18, max(190, 16 + 6 * max(len(name) for _, bars in groups for name in bars))  # six pixels a letter
    width = left + 530
    out, y = [f'<text x="0" y="16" font-size="15">{html.escape(title)}</text>'], 40
    for label, bars in groups:
        out.append(f'<text x="0" y="{y}" font-weight="bold">{html.escape(label)}</text>')
        for name, value in bars.items():
            y += row
            length = (width - left - 90) * value / max(bars.values())
            colour = next((colour for start, colour in COLOURS.items() if name.startswith(start)), "#888888")
            out.append(f'<text x="{left - 8}" y="{y}" text-anchor="end">{html.escape(name)}</text>')
            out.append(f'<rect x="{left}" y="{y - 11}" width="{length:.1f}" height="13" fill="{colour}"/>')
            out.append(f'<text x="{left + length + 6:.1f}" y="{y}">{html.escape(text.format(value))}</text>')
        y += 2 * row
    style = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y - row}" font-family="sans-serif"'
    body = "\n".join(out)
    return f'<svg {style} font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
