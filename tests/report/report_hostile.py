"""Strings that try to run, to render, to break a cell, or to hide, in every output format."""

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</title></style></script><script>alert(2)</script>",
    '"><svg onload=alert(3)>',
    '#panic("typst") #text(fill: red)[x] $sum_x$ *bold* _it_ @label <label>',
    '=HYPERLINK("http://evil.example","x")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "-2+3",
    "[click](javascript:alert(4)) ![x](http://evil.example/x.png) | cell | `code` ~~s~~",
    "{{ 7*7 }}{% raw %}{{ config }}",
    "$\\frac{1}$ \\input{x}",
    "control\x00\x07\x1b[31m and \u202eright-to-left",
    "x" * 300,
    "漢字 العربية 🙂",
)
