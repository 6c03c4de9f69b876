"""The page's style sheet; a Python module, so that DVC sees the report depend on it as on any other code."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1c1b22; --soft: #6a6773; --line: #e5e1da;
  --accent: #c2255c; --cool: #1a7fb0; --good: #2b8a3e; --bad: #c92a2a; --chip: #f1eee8; --note: #fff6dd;
  --note-line: #ecd28b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131217; --card: #1b1a21; --ink: #ece9e2; --soft: #9d99a8; --line: #312f3a;
    --accent: #ff7aa8; --cool: #6cc3ee; --good: #69db7c; --bad: #ff8787; --chip: #282631; --note: #2c2614;
  --note-line: #5d4f22;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Inter", "Segoe UI", system-ui, -apple-system, "Helvetica Neue", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main, header.page { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header.page { padding-top: 56px; }
.kicker { color: var(--accent); font-size: 13px; font-weight: 650; letter-spacing: .09em; text-transform: uppercase; }
h1 { font-size: 38px; line-height: 1.15; letter-spacing: -.022em; margin: 8px 0 10px; font-weight: 720;
  text-wrap: balance; }
h2 { font-size: 23px; letter-spacing: -.012em; margin: 64px 0 6px; font-weight: 680; }
h3 { font-size: 16px; margin: 30px 0 8px; font-weight: 650; }
p { max-width: 74ch; margin: 6px 0 14px; }
.soft, figcaption { color: var(--soft); }
a { color: var(--cool); }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 18px 0 0; font-size: 14.5px; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
code, .tokens { font-family: ui-monospace, "SF Mono", "Cascadia Mono", "JetBrains Mono", Menlo, "DejaVu Sans Mono",
  monospace; font-size: .86em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; margin: 30px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px 14px; }
.tile b { display: block; font-size: 34px; line-height: 1.15; letter-spacing: -.02em; font-weight: 680; }
.tile .name { font-size: 14px; font-weight: 600; }
.tile .soft { font-size: 13px; display: flex; flex-wrap: wrap; gap: 0 12px; }
.note { background: var(--note); border: 1px solid var(--note-line); border-radius: 10px; padding: 12px 16px;
  margin: 18px 0; max-width: none; font-size: 15px; }
.scroll { overflow-x: auto; margin: 14px 0; border: 1px solid var(--line); border-radius: 12px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; }
th, td { text-align: left; padding: 8px 14px; vertical-align: baseline; }
thead th { font-size: 12.5px; font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--line);
  white-space: nowrap; }
tbody tr + tr td, tbody tr + tr th { border-top: 1px solid var(--line); }
tbody th { font-weight: 550; } tbody th:first-child { min-width: 230px; }
tr.group th { font-size: 12.5px; letter-spacing: .05em; text-transform: uppercase; color: var(--accent);
  padding-top: 16px; font-weight: 650; }
td.num, th.num { text-align: right; white-space: nowrap; }
td.value { font-weight: 680; font-size: 15.5px; }
td.pub, th.pub { color: var(--soft); }
thead th.pub { white-space: normal; min-width: 104px; }
table.dense { font-size: 13px; } table.dense th, table.dense td { padding: 5px 9px; }
  table.dense thead th { white-space: normal; }
table.dense tbody th { white-space: nowrap; }
td .interval { display: block; font-weight: 400; font-size: 12.5px; color: var(--soft); }
tr.baseline th, tr.baseline td { color: var(--soft); }
.protocol { display: block; font-weight: 400; font-size: 12.5px; line-height: 1.4; color: var(--soft); max-width: 44ch; }
td.protocol { display: table-cell; }
td:has(> .range) { vertical-align: middle; }
.range { width: 120px; height: 16px; display: block; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 18px;
  margin: 18px 0; }
.panel { background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; display: flex;
  flex-direction: column; }
.panel .pictures { display: flex; gap: 2px; background: var(--line); }
.panel figure { margin: 0; flex: 1 1 0; min-width: 0; background: var(--card); }
.panel img { display: block; width: 100%; }
.panel figcaption { font-size: 11.5px; padding: 4px 8px 3px; }
.panel .text { padding: 12px 16px 14px; font-size: 14.5px; }
.panel .question { font-weight: 600; margin: 4px 0 8px; overflow-wrap: anywhere; }
.panel dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 8px 0 0; }
.panel dt { color: var(--soft); font-size: 13px; }
.panel dd { margin: 0; overflow-wrap: anywhere; }
.verdict { float: right; font-size: 12.5px; font-weight: 650; padding: 1px 9px; border-radius: 99px;
  background: var(--chip); }
.verdict.right { color: var(--good); } .verdict.wrong { color: var(--bad); }
.bench { font-size: 12.5px; color: var(--soft); }
.tokens { line-height: 1.7; overflow-wrap: anywhere; }
.tokens .seg, .tokens .depth { background: var(--chip); border-radius: 5px; padding: 1px 5px; }
.tokens .seg { color: var(--accent); font-weight: 600; } .tokens .depth { color: var(--cool); }
.tokens details { display: inline; } .tokens summary { display: inline; cursor: pointer; list-style: none; }
.tokens summary::-webkit-details-marker { display: none; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin: 0 5px 0 14px; vertical-align: -1px; }
.plot { width: 100%; height: auto; display: block; color: var(--ink); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; margin: 14px 0; }
.card img { max-width: 100%; border-radius: 6px; display: block; }
.legend { font-size: 13.5px; margin: 0 0 8px -14px; }
.stage { padding: 0; }
.stage > summary { cursor: pointer; padding: 13px 18px; display: flex; gap: 14px; align-items: baseline; flex-wrap: wrap; }
.stage > summary b { min-width: 150px; }
.stage > summary .soft { font-size: 13.5px; }
.stage > div { padding: 0 18px 16px; border-top: 1px solid var(--line); }
.stage table { font-size: 13px; } .stage th, .stage td { padding: 4px 12px 4px 0; }
.stage td { overflow-wrap: anywhere; }
pre { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; background: var(--chip);
  border-radius: 8px; padding: 10px 14px; overflow-x: auto; }
footer { color: var(--soft); font-size: 13.5px; margin: 64px 0 48px; border-top: 1px solid var(--line); padding-top: 16px; }
@media (max-width: 640px) { h1 { font-size: 29px; } main, header.page { padding: 0 16px; }
  header.page { padding-top: 30px; } }
@media print { body { background: #fff; } .card, .tile, .panel { break-inside: avoid; } }
"""
