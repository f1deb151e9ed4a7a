#!/usr/bin/env python3
"""Makes demo.svg, the picture in the README, from what `taphouse demo` really prints.

    python3 docs/images/render.py target/release/taphouse    record demo.txt (75 s), then draw it
    python3 docs/images/render.py                            draw demo.txt again

Only the standard library. Every character cell has a fixed width and every run of text is stretched to it, so that the
picture looks the same with whatever monospaced font the viewer has.
"""
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS = 118
CELL, LINE, SIZE, PAD, BAR = 7.8, 18, 13, 18, 34

SESSION = [
    "taphouse status",
    """taphouse flows "port(443) AND bytes_r > 5000" --limit 5 \\
    --columns t_end,src_ip,dst_ip,pkts_o,pkts_r,bytes_r,conn_state,rtt_us""",
    """taphouse sql "SELECT src_ip, count(DISTINCT dst_port) AS ports, count(*) AS flows, sum(bytes_o + bytes_r) AS bytes
    FROM flows WHERE proto = 'tcp' GROUP BY src_ip ORDER BY ports DESC LIMIT 3\"""",
    "taphouse alerts",
]


def record(binary):
    """Runs the demo for 75 s, long enough for two alerts and the first segment, and asks it the questions above."""
    with tempfile.TemporaryDirectory() as folder:
        bin_dir = Path(folder) / "bin"
        bin_dir.mkdir()
        (bin_dir / "taphouse").symlink_to(Path(binary).resolve())
        env = {**os.environ, "PATH": f"{bin_dir}:{os.environ['PATH']}"}
        log = Path(folder) / "log"
        with open(log, "w") as err:
            demo = subprocess.Popen(["taphouse", "demo"], env=env, cwd=folder, stderr=err)
        try:
            time.sleep(75)
            started = [line for line in log.read_text().splitlines() if line.startswith("taphouse: ")]
            text = "\n".join(["$ taphouse demo &", *started, ""])
            for command in SESSION:
                done = subprocess.run(command, shell=True, env=env, cwd=folder, capture_output=True, text=True, check=True)
                text += f"\n$ {command}\n{done.stdout}"
        finally:
            demo.send_signal(signal.SIGTERM)
            demo.wait()
    (HERE / "demo.txt").write_text(text)


def wrapped(text):
    """Screen lines as a terminal of COLUMNS columns shows them, each with whether it is part of a command."""
    typed = False
    for line in text.rstrip("\n").split("\n"):
        typed = line.startswith("$ ") or (typed and line.startswith("    "))
        for at in range(0, max(len(line), 1), COLUMNS):
            yield line[at : at + COLUMNS], typed


def run(x, y, text, kind):
    width = f"{len(text) * CELL:.1f}"
    return f'<text class="{kind}" x="{x:.1f}" y="{y}" textLength="{width}" xml:space="preserve">{escape(text)}</text>'


def draw(text):
    lines = list(wrapped(text))
    width = round(COLUMNS * CELL + 2 * PAD)
    height = BAR + len(lines) * LINE + PAD
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        "<title>A terminal: taphouse demo, then status, flows, sql and alerts</title>",
        "<style>",
        f"text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#c9d1d9}}",
        ".prompt{fill:#7ee787}.typed{fill:#ffffff;font-weight:600}.note{fill:#e3b341}.alarm{fill:#ff7b72}.calm{fill:#7ee787}",
        ".head{fill:#8b949e}.rule{stroke:#484f58;stroke-width:1}",
        "</style>",
        f'<rect width="{width}" height="{height}" rx="9" fill="#0d1117"/>',
        f'<path d="M0 {BAR - 6}V9a9 9 0 0 1 9-9h{width - 18}a9 9 0 0 1 9 9v{BAR - 15}z" fill="#161b22"/>',
    ]
    for k, colour in enumerate(["#ff5f57", "#febc2e", "#28c840"]):
        out.append(f'<circle cx="{PAD + 4 + 20 * k}" cy="14" r="6" fill="{colour}"/>')
    for row, (line, typed) in enumerate(lines):
        y = BAR + row * LINE + 14
        if re.fullmatch(r"[─═]+", line.strip()) and line.strip():
            # A rule of box characters, drawn: fonts leave gaps between them.
            middle = y - 4.5
            for shift in [-1.5, 1.5] if "═" in line else [0]:
                out.append(f'<path class="rule" d="M{PAD} {middle + shift}H{PAD + len(line) * CELL:.1f}"/>')
            continue
        if typed and line.startswith("$ "):
            out.append(run(PAD, y, "$", "prompt"))
            out.append(run(PAD + 2 * CELL, y, line[2:], "typed"))
            continue
        plain = "typed" if typed else "note" if "DEMO" in line else "head" if re.match(r" *(seq|t_end|src_ip) |-+  -", line) else "out"
        # One run of text for each word group, so that columns stand exactly where the terminal puts them.
        for part in re.finditer(r"\S+(?: \S+)*", line):
            word = part.group()
            kind = {"firing": "alarm", "resolved": "calm"}.get(word, plain)
            out.append(run(PAD + part.start() * CELL, y, word, kind))
    out.append("</svg>\n")
    return "\n".join(out)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(sys.argv[1])
    (HERE / "demo.svg").write_text(draw((HERE / "demo.txt").read_text()))
