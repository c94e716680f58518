// Replaces the panels by newer ones now and then. The page is whole without it.
"use strict";

const EVERY_MS = 30000;
const state = document.getElementById("state");
const sections = [...document.querySelectorAll("section.panel[id]")];
let paused = false;

// A select shows its choice at once; the button is for those without scripts.
for (const select of document.querySelectorAll("form select")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}

function replaceKeeping(section, html) {
  const open = [...section.querySelectorAll("details")].map((each) => each.open);
  section.innerHTML = html; // made and escaped by the server that made this page
  section.querySelectorAll("details").forEach((each, n) => {
    each.open = Boolean(open[n]);
  });
}

async function refresh() {
  if (paused || document.hidden) return;
  try {
    for (const section of sections) {
      const answer = await fetch(`api/panels/${section.id}${location.search}`);
      if (!answer.ok) throw new Error(`answered ${answer.status}`);
      replaceKeeping(section, (await answer.json()).html);
    }
    told.textContent = `Refreshed ${new Date().toISOString().slice(11, 19)} UTC.`;
  } catch (why) {
    told.textContent = `The dashboard does not answer (${why.message}); what is shown is older.`;
  }
}

const told = document.createElement("span");
const pause = document.createElement("button");
pause.type = "button";
pause.textContent = "Pause";
pause.addEventListener("click", () => {
  paused = !paused;
  pause.textContent = paused ? "Go on" : "Pause";
  refresh();
});
if (state && sections.length && !new URLSearchParams(location.search).get("until")) {
  told.textContent = `${state.textContent} Refreshes every ${EVERY_MS / 1000} s.`;
  state.replaceChildren(told, " ", pause);
  setInterval(refresh, EVERY_MS);
  document.addEventListener("visibilitychange", refresh);
}
