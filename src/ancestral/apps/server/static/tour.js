// The tour: a card that leads through the tools, for whoever has not been here before.

import { $, $$, copies, say } from "./dom.js";

const SEEN = "ancestral tour"; // in the browser's store, once it was begun or declined
const STOPS = [
  ["draw", "Draw", "Press Draw: images come out of noise, a step at a time. On the left the state, on the right the end that the model foresees. The slider below goes back through the steps."],
  ["time", "Time", "Choose, drop or draw a picture, then move the slider: how much noise hides, and what the model still sees."],
  ["inpaint", "Inpaint", "Paint over a part of a picture. It is drawn anew; the rest stays as it is."],
  ["morph", "Morph", "Two pictures are noised, mixed and drawn: what lies between them."],
  ["compress", "Compress", "A file of which every beginning is a picture already, and whose end is the exact one."],
  ["nearest", "Nearest", "The training images most like a picture: is it new, or a copy?"],
  ["draw", "Report", "The report explains all of this by the model's own numbers, step by step, and says what to try next."],
];

export class Tour {
  #place = 0;

  // `go` opens a tool; `report` is true where there is a report, else the command that makes one.
  constructor(go, report) {
    Object.assign(this, { go, report, root: $("#tour"), start: $("#tour-start") });
    this.start.addEventListener("click", () => this.begin());
    this.root.addEventListener("keydown", (event) => event.key === "Escape" && this.end());
    const moves = { back: () => this.#show(this.#place - 1), next: () => this.#next(), end: () => this.end() };
    for (const button of $$("[data-tour]", this.root)) button.addEventListener("click", moves[button.dataset.tour]);
    copies(this.root, { command: () => $("code", this.root).textContent });
    if (!stored()) this.start.classList.add("new");
  }

  begin() {
    store();
    this.start.classList.remove("new");
    this.root.hidden = false;
    this.#show(0);
  }

  end() {
    this.root.hidden = true;
    this.start.focus();
  }

  #next() {
    if (this.#place === STOPS.length - 1) this.end();
    else this.#show(this.#place + 1);
  }

  #show(place) {
    this.#place = place;
    const [tool, title, text] = STOPS[place];
    const making = title === "Report" && this.report !== true;
    this.go(tool);
    say($("h2", this.root), title);
    say($(".text", this.root), making ? `${text} There is none in this run yet; this makes one:` : text);
    $(".command", this.root).hidden = !making;
    $("code", this.root).textContent = making ? this.report : "";
    $(".where", this.root).textContent = `${place + 1} of ${STOPS.length}`;
    $("[data-tour=back]", this.root).disabled = place === 0;
    $("[data-tour=next]", this.root).textContent = place === STOPS.length - 1 ? "Done" : "Next";
    $("h2", this.root).focus();
  }
}

// A browser may keep nothing: then the button stays marked.
function stored() {
  try {
    return localStorage.getItem(SEEN) !== null;
  } catch {
    return false;
  }
}

function store() {
  try {
    localStorage.setItem(SEEN, "seen");
  } catch {
    // nothing is lost but the mark
  }
}
