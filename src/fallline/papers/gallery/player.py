"""A player for an animated picture: one page that opens offline, with a button, a slider and a pace."""

import html

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root{{color-scheme:light dark;--ink:#1d2127;--ground:#f4f4f2;--accent:#0067a8}}
@media (prefers-color-scheme:dark){{:root{{--ink:#e8eaed;--ground:#101214;--accent:#62bdf2}}}}
body{{margin:0;padding:24px;background:var(--ground);color:var(--ink);font:14px system-ui,sans-serif}}
main{{max-width:960px;margin:auto}}
svg{{display:block;width:100%;height:auto}}
form{{display:flex;gap:14px;align-items:center;padding:14px 4px}}
button,select{{font:inherit;padding:4px 12px}}
button{{min-width:5.5em}}
input{{flex:1;accent-color:var(--accent)}}
</style>
<main>
{svg}
<form>
<button type="button" id="play" aria-pressed="true">Pause</button>
<input id="time" type="range" min="0" max="{seconds}" step="0.01" value="0" aria-label="Time, seconds">
<label>Speed <select id="speed"><option value="0.25">¼</option><option value="0.5">½</option>
<option value="1" selected>1</option><option value="2">2</option></select></label>
</form>
</main>
<script>
const svg = document.querySelector("svg"), play = document.querySelector("#play");
const slider = document.querySelector("#time"), speed = document.querySelector("#speed");
let time = 0, last = null, running = !matchMedia("(prefers-reduced-motion: reduce)").matches;
svg.pauseAnimations();  // the page keeps the time, so that it can be slowed
function show() {{
  svg.setCurrentTime(Math.min(time, {seconds} - 0.001));
  slider.value = time;
}}
function set(on) {{
  running = on;
  last = null;
  play.textContent = on ? "Pause" : "Play";
  play.setAttribute("aria-pressed", on);
}}
function frame(now) {{
  if (running && last !== null) {{
    time = (time + speed.value * (now - last) / 1000) % {seconds};
    show();
  }}
  last = now;
  requestAnimationFrame(frame);
}}
play.addEventListener("click", () => set(!running));
slider.addEventListener("input", () => {{ set(false); time = +slider.value; show(); }});
addEventListener("keydown", event => {{
  if (event.key === " " && event.target === document.body) {{ event.preventDefault(); set(!running); }}
}});
set(running);
show();
requestAnimationFrame(frame);
</script>
</html>
"""


def player(title: str, svg: str, seconds: float) -> str:
    """The page; a reader who asks for less motion finds it paused, and plays it when he wants."""
    # Asking to play is asking for motion: the rules for less of it go, as the page starts paused.
    moving = svg.replace("(prefers-reduced-motion:reduce)", "not all")
    return PAGE.format(title=html.escape(title), svg=moving, seconds=f"{seconds:g}")
