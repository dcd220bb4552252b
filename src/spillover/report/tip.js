"use strict";
// The note beside what the mouse points at or the keyboard is on. Its text is untrusted: textContent and nothing else.
const tip = document.getElementById("tip");

let beside = null;

function showTip(element, text) {
  beside = element;
  tip.textContent = text;
  tip.hidden = false;
  placeTip();
}

function hideTip() {
  tip.hidden = true;
}

function placeTip() {
  if (tip.hidden) return;
  const at = beside.getBoundingClientRect();
  const below = at.bottom + tip.offsetHeight + 8 < innerHeight;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  tip.style.top = `${below ? at.bottom + 6 : at.top - tip.offsetHeight - 6}px`;
  tip.style.left = `${Math.max(8, Math.min(room, at.left + at.width / 2 - tip.offsetWidth / 2))}px`;
}

addEventListener("scroll", placeTip, { passive: true, capture: true });

// A dot of a question: its words and its counts stand in the table below it.
for (const strip of document.querySelectorAll(".strip")) {
  const lines = strip.querySelector("tbody").rows;
  const conditions = strip.querySelector("thead").rows[0].cells;
  strip.addEventListener("mouseover", (event) => {
    const { q } = event.target.dataset;
    if (q === undefined) return hideTip();
    const [question, ...counts] = lines[q].cells;
    const { c } = event.target.parentNode.dataset;
    const name = [...conditions[+c + 1].childNodes].map((node) => node.textContent).filter(Boolean);
    showTip(event.target, `${question.textContent}\n${name.join(", ")}: ${counts[c].textContent}`);
  });
  strip.addEventListener("mouseleave", hideTip);
}
