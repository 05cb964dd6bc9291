// Draw: the settings, the walk as it runs, and the two ways to get the same images again.

import { $, offerClasses, offerSeeds, offerShell, shell } from "./dom.js";
import { Film } from "./film.js";
import { FirstFilm } from "./first.js";
import { Task } from "./task.js";

const ETA = "ddim"; // the entry of the solver list that shows the field of eta

export class Draw {
  constructor(panel, model) {
    this.form = $("form", panel);
    this.#offer(model);
    this.film = new Film($(".film", panel));
    this.first = new FirstFilm($(".first", panel));
    const task = new Task(panel, "draw", {
      body: (found) => ({
        seed: found.seed,
        images: found.images,
        steps: found.steps,
        solver: found.solver === ETA ? null : found.solver,
        eta: found.eta ?? null,
        guidance: found.guidance ?? null,
        label: found.label ?? null,
      }),
      begin: () => {
        this.first.end();
        this.film.begin();
        shell(panel, null);
      },
      step: (frame) => this.film.add(frame),
      restore: () => this.#choose(),
      done: ({ images, again, sha256 }) => {
        this.film.end(images);
        panel.dataset.sha256 = sha256;
        shell(panel, again);
      },
    });
    offerShell(panel, { link: () => location.href });
    task.rejoined.then((found) => found || task.busy || this.first.begin(model));
    this.form.addEventListener("change", () => {
      this.#choose();
      history.replaceState(null, "", `#${this.fragment()}`);
    });
  }

  #offer(model) {
    const { images, steps, solver, eta, label, guidance } = this.form.elements;
    images.max = model.limits.images;
    images.value = Math.min(9, model.limits.images);
    steps.max = model.limits.steps;
    steps.value = model.default.steps;
    solver.append(new Option("automatic", ""));
    for (const { name, label: text } of model.solvers) solver.append(new Option(text, name));
    solver.append(new Option("DDIM, with eta", ETA));
    offerClasses(label, model);
    guidance.closest("label").hidden = !model.guidance;
    offerSeeds(this.form);
    eta.closest("label").hidden = true;
  }

  #choose() {
    const { solver, eta } = this.form.elements;
    eta.closest("label").hidden = solver.value !== ETA;
  }

  // The settings as the part of the address after #.
  fragment() {
    const chosen = new URLSearchParams();
    for (const field of this.form.elements)
      if (field.name && field.value !== "" && !field.closest("label[hidden]")) chosen.set(field.name, field.value);
    return `draw?${chosen}`;
  }

  restore(parameters) {
    for (const name of ["solver", "guidance", "label"]) this.form.elements.namedItem(name).value = "";
    for (const [name, value] of parameters) {
      const field = this.form.elements.namedItem(name);
      if (field) field.value = value;
    }
    this.#choose();
  }
}
